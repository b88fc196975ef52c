package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// curve is Millrace's throughput over something that grows.
type curve struct {
	name, title, xLabel, yLabel string
	xs                          []int
	lines                       []line
}

// line is one series of a curve.
type line struct {
	name    string
	measure func(ctx context.Context, x int) (float64, error)
	// most bounds x: beyond it, the line is not measured.
	most int
}

var curves = []curve{
	{
		name: "workers", title: "Workers", xLabel: "workers", yLabel: "messages/s", xs: []int{1, 2, 4, 8, 16, 32, 64},
		lines: []line{
			{name: "memory, quick handler", measure: func(ctx context.Context, x int) (float64, error) {
				return trial{broker: "memory", workers: x}.rate(ctx)
			}},
			{name: "memory, handler of 1 ms", measure: func(ctx context.Context, x int) (float64, error) {
				return trial{broker: "memory", workers: x, work: time.Millisecond}.rate(ctx)
			}},
			{name: "kafka, handler of 1 ms", measure: func(ctx context.Context, x int) (float64, error) {
				return trial{broker: "kafka", workers: x, work: time.Millisecond}.rate(ctx)
			}},
		},
	},
	{
		name: "lanes", title: "Lanes (partitions, queues, shards)", xLabel: "lanes", yLabel: "messages/s", xs: []int{1, 2, 4, 8, 16, 32, 64},
		lines: onEach([]string{"kafka", "rabbitmq", "postgres"}, func(t *trial, x int) { t.lanes = x }),
	},
	{
		name: "keys", title: "Different keys", xLabel: "keys", yLabel: "messages/s", xs: []int{1, 10, 100, 1000, 10_000, 100_000, 1_000_000},
		lines: onEach([]string{"memory", "kafka"}, func(t *trial, x int) { t.keys = x }),
	},
	{
		name: "size", title: "Bytes of a message", xLabel: "bytes", yLabel: "messages/s", xs: []int{16, 256, 4 << 10, 64 << 10, 1<<20 - 4096},
		lines: onEach([]string{"memory", "kafka", "postgres"}, func(t *trial, x int) { t.size = x }),
	},
	{
		name: "handlers", title: "Handlers on one topic", xLabel: "handlers", yLabel: "messages/s", xs: []int{1, 3, 10, 30, 100},
		lines: []line{{name: "memory", measure: handlers}},
	},
	{
		name: "backlog", title: "Backlog", xLabel: "messages that wait", yLabel: "messages/s", xs: []int{10_000, 100_000, 1_000_000, 5_000_000},
		lines: []line{
			{name: "postgres", measure: func(ctx context.Context, x int) (float64, error) { return trial{broker: "postgres", n: x}.rate(ctx) }},
			{name: "sqlite", measure: func(ctx context.Context, x int) (float64, error) { return trial{broker: "sqlite", n: x}.rate(ctx) }, most: 1_000_000},
		},
	},
	{
		name: "blocked", title: "Memory while a consumer is blocked", xLabel: "messages that wait", yLabel: "MiB in use", xs: []int{10_000, 100_000, 1_000_000},
		lines: []line{
			{name: "kafka", measure: func(ctx context.Context, x int) (float64, error) { return blocked(ctx, "kafka", x) }},
			{name: "postgres", measure: func(ctx context.Context, x int) (float64, error) { return blocked(ctx, "postgres", x) }},
		},
	},
}

func onEach(brokers []string, set func(t *trial, x int)) (lines []line) {
	for _, broker := range brokers {
		lines = append(lines, line{name: broker, measure: func(ctx context.Context, x int) (float64, error) {
			t := trial{broker: broker}
			set(&t, x)
			return t.rate(ctx)
		}})
	}
	return lines
}

// trial is one point: consuming a topic's messages, or on memory publishing and consuming at once.
// A field that is zero is as in the paths.
type trial struct {
	broker                        string
	n, lanes, workers, keys, size int
	work                          time.Duration
}

func (t trial) rate(ctx context.Context) (float64, error) {
	p := path{name: "scaling", broker: t.broker, kind: consuming, callers: 1, perCall: 1, work: t.work}
	if t.broker == "memory" {
		p.kind = through
	}
	open := func(ctx context.Context, at *place) (side, error) {
		s, err := openMillrace(ctx, at)
		if err == nil {
			s.(*millraceSide).workers = t.workers
		}
		return s, err
	}
	load := func(n int) load {
		l := load{n: n, callers: 1, perCall: 1, size: t.size, keys: t.keys}
		if l.size == 0 {
			l.size = *size
		}
		if l.keys == 0 {
			l.keys = defaultKeys
		}
		return l
	}
	if t.n > 0 {
		r, err := p.roundOf(ctx, open, load(t.n), t.lanes)
		return r.rate, err
	}
	// As long as a round of the paths: a trial tells how many messages that is.
	r, err := p.roundOf(ctx, open, load(500), t.lanes)
	most := min(mostCount, max(1000, 1<<30/load(1).size))
	for n := 500; err == nil && n < int(r.rate*least.Seconds()) && n < most; {
		n = min(max(int(r.rate*least.Seconds()), 2*n), 20*n, most)
		r, err = p.roundOf(ctx, open, load(n), t.lanes)
	}
	return r.rate, err
}

// handlers measures one topic with so many handlers, each for a type of its own.
func handlers(ctx context.Context, x int) (float64, error) {
	const n = 500_000
	b, err := bus.Open(ctx, "memory:")
	if err != nil {
		return 0, err
	}
	defer b.Close()
	l := newLedger(n)
	types := make([]string, x)
	r := router.New(b, "g")
	for i := range types {
		types[i] = fmt.Sprintf("type-%d", i)
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { l.note(m.Payload); return nil }, router.Name(types[i]), router.Accept(types[i]))
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	if err = r.Ready(ctx); err == nil {
		u := began()
		err = load{n: n, callers: 1, perCall: 1, size: *size, keys: defaultKeys}.send(func(items []item) error {
			return b.PublishMessages(ctx, "t", &bus.Message{Key: items[0].key, Payload: items[0].payload, Type: types[numberOf(items[0].payload)%x]})
		})
		if err == nil {
			err = l.wait(ctx, n)
		}
		if err == nil {
			res := u.ended(n)
			cancel()
			return res.rate, <-over
		}
	}
	cancel()
	<-over //nolint:errcheck // err says why
	return 0, err
}

// blocked is the memory in use while handlers stand still and x messages wait.
func blocked(ctx context.Context, broker string, x int) (mib float64, err error) {
	before := began().mem.HeapAlloc // with the memory that other curves have left
	at, err := newPlace(ctx, broker, 0)
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := at.remove(ctx); err == nil {
			err = cerr
		}
	}()
	b, err := bus.Open(ctx, at.ours)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	if err := publishTo(ctx, b, at.topic, load{n: x, callers: 4, perCall: 500, size: *size, keys: defaultKeys}); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := router.New(b, at.topic, router.DrainTimeout(time.Second))
	r.HandleFunc(at.topic, func(ctx context.Context, _ *bus.Message) error {
		<-ctx.Done()
		return ctx.Err()
	})
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	if err := r.Ready(ctx); err != nil {
		return 0, err
	}
	// Long enough for all that would be read ahead.
	select {
	case <-time.After(3 * time.Second):
	case <-ctx.Done():
	}
	mib = (float64(began().mem.HeapAlloc) - float64(before)) / (1 << 20)
	cancel()
	<-over //nolint:errcheck // it reports that handlers were cut short
	return mib, nil
}

// scale measures the curves whose names begin with one of the prefixes, prints them, and draws each
// into dir.
func scale(ctx context.Context, dir, prefixes string) error {
	for _, c := range curves {
		if !hasPrefix(c.name, prefixes) {
			continue
		}
		ys := make([][]float64, len(c.lines))
		for i, l := range c.lines {
			for _, x := range c.xs {
				if l.most > 0 && x > l.most {
					break
				}
				fmt.Fprintf(os.Stderr, "\r\033[K%s: %s, %s %d", c.title, l.name, c.xLabel, x)
				y, err := l.measure(ctx, x)
				if err != nil {
					return fmt.Errorf("%s: %s at %d: %w", c.name, l.name, x, err)
				}
				ys[i] = append(ys[i], y)
			}
		}
		fmt.Fprint(os.Stderr, "\r\033[K")
		c.print(ys)
		if err := os.WriteFile(filepath.Join(dir, c.name+".svg"), c.svg(ys), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func hasPrefix(name, prefixes string) bool {
	for prefix := range strings.SplitSeq(prefixes, ",") {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// print prints a table for a Markdown page.
func (c *curve) print(ys [][]float64) {
	fmt.Printf("![%s](performance/%s.svg)\n\n| %s |", c.title, c.name, c.xLabel)
	for _, x := range c.xs {
		fmt.Printf(" %s |", short(float64(x)))
	}
	fmt.Printf("\n|---|%s\n", strings.Repeat("---|", len(c.xs)))
	for i, l := range c.lines {
		fmt.Printf("| %s |", l.name)
		for j := range c.xs {
			if j < len(ys[i]) {
				fmt.Printf(" %s |", short(ys[i][j]))
			} else {
				fmt.Print(" |")
			}
		}
		fmt.Println()
	}
	fmt.Println()
}
