package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// side is one library on one broker.
type side interface {
	// publish publishes the messages numbered from first on, from so many goroutines, so many a call.
	publish(ctx context.Context, topic string, first, n, goroutines, perCall int) error
	// consume starts a group on topic that tells l of each message after work, until ctx ends.
	consume(ctx context.Context, topic string, work time.Duration, l *ledger) error
	close() error
}

// path is one line of the table.
type path struct {
	name    string
	broker  string
	url     string
	publish bool
	callers int
	perCall int
	work    time.Duration
}

var brokerURLs = map[string]string{
	"memory":   "memory:",
	"kafka":    os.Getenv("MILLRACE_KAFKA_URL"),
	"rabbitmq": os.Getenv("MILLRACE_RABBITMQ_URL"),
	"postgres": os.Getenv("MILLRACE_POSTGRES_URL"),
}

func allPaths() []path {
	var paths []path
	for _, broker := range []string{"memory", "kafka", "rabbitmq", "postgres"} {
		url := brokerURLs[broker]
		if broker == "memory" {
			paths = append(paths, path{name: "memory", broker: broker, url: url, publish: true, callers: 1, perCall: 1})
			continue
		}
		publish := func(name string, callers, perCall int) {
			paths = append(paths, path{name: broker + "/publish/" + name, broker: broker, url: url, publish: true, callers: callers, perCall: perCall})
		}
		publish("serial", 1, 1)
		publish("16", 16, 1)
		publish("64", 64, 1)
		publish("batch100", 1, 100)
		publish("batch1000", 1, 1000)
		paths = append(paths,
			path{name: broker + "/consume", broker: broker, url: url},
			path{name: broker + "/consume/1ms", broker: broker, url: url, work: time.Millisecond})
	}
	return paths
}

// measure runs the sides in turn, round by round, and returns the medians in messages a second.
func (p path) measure(ctx context.Context, rounds int, least time.Duration) (map[string]float64, error) {
	if p.url == "" {
		return nil, fmt.Errorf("no URL for %s: run make brokers and . .brokers/env", p.broker)
	}
	sides := []string{"millrace", "watermill", "raw"}
	counts := map[string]int{}
	got := map[string][]float64{}
	for round := range rounds + 1 { // the first finds out how many messages fill a round
		for _, name := range sides {
			open := opener(name, p.broker)
			if open == nil {
				continue
			}
			n := counts[name]
			if n == 0 {
				n = 2000
			}
			rate, err := p.round(ctx, open, n)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if round == 0 {
				counts[name] = min(max(int(rate*least.Seconds()), 2000), 5_000_000) / 1000 * 1000
				continue
			}
			got[name] = append(got[name], rate)
		}
	}
	medians := map[string]float64{}
	for name, rates := range got {
		slices.Sort(rates)
		medians[name] = rates[len(rates)/2]
	}
	return medians, nil
}

// round measures one side once.
func (p path) round(ctx context.Context, open func(ctx context.Context, url string) (side, error), n int) (rate float64, err error) {
	s, err := open(ctx, p.url)
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := s.close(); err == nil {
			err = cerr
		}
	}()
	topic := "bench-" + rand.Text()
	if p.broker == "kafka" {
		if err := makeKafkaTopic(ctx, p.url, topic); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var consuming sync.WaitGroup
	var consumeErr error
	defer func() { // before close
		cancel()
		consuming.Wait()
		if err == nil {
			err = consumeErr
		}
	}()
	l := newLedger(n + 1)
	start := func() {
		consuming.Go(func() {
			if cerr := s.consume(ctx, topic, p.work, l); cerr != nil && ctx.Err() == nil {
				consumeErr = cerr
				cancel()
			}
		})
	}
	if p.broker == "memory" { // publishing and consuming at once: there is no other way to be quick
		start()
		if err := p.warm(ctx, s, topic, l, n); err != nil {
			return 0, err
		}
		began := time.Now()
		if err := s.publish(ctx, topic, 0, n, p.callers, p.perCall); err != nil {
			return 0, err
		}
		if err := l.wait(ctx, n+1); err != nil {
			return 0, err
		}
		return float64(n) / time.Since(began).Seconds(), l.check()
	}
	if p.publish {
		if err := s.publish(ctx, topic, n, 1, 1, 1); err != nil { // makes the topic
			return 0, err
		}
		began := time.Now()
		if err := s.publish(ctx, topic, 0, n, p.callers, p.perCall); err != nil {
			return 0, err
		}
		took := time.Since(began)
		start()
		if err := l.wait(ctx, n+1); err != nil {
			return 0, err
		}
		return float64(n) / took.Seconds(), l.check()
	}
	if err := s.publish(ctx, topic, n, 1, 1, 1); err != nil {
		return 0, err
	}
	if err := s.publish(ctx, topic, 0, n, 4, 500); err != nil {
		return 0, err
	}
	start()
	if err := l.wait(ctx, 1); err != nil { // joining a group is not consuming
		return 0, err
	}
	began := time.Now()
	already := l.count.Load()
	if err := l.wait(ctx, n+1); err != nil {
		return 0, err
	}
	return float64(int64(n+1)-already) / time.Since(began).Seconds(), l.check()
}

// warm publishes one message until the group is there.
func (p path) warm(ctx context.Context, s side, topic string, l *ledger, number int) error {
	if err := s.publish(ctx, topic, number, 1, 1, 1); err != nil {
		return err
	}
	return l.wait(ctx, 1)
}

// ledger notes which numbers arrived, and how often.
type ledger struct {
	seen  []atomic.Uint32
	count atomic.Int64
	bell  chan struct{}
}

func newLedger(n int) *ledger {
	return &ledger{seen: make([]atomic.Uint32, n), bell: make(chan struct{}, 1)}
}

func (l *ledger) note(payload []byte) {
	l.seen[binary.BigEndian.Uint64(payload)].Add(1)
	if n := l.count.Add(1); n == 1 || n == int64(len(l.seen)) {
		select {
		case l.bell <- struct{}{}:
		default:
		}
	}
}

// wait waits for n messages; n is 1 or all.
func (l *ledger) wait(ctx context.Context, n int) error {
	for l.count.Load() < int64(n) {
		select {
		case <-l.bell:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Minute):
			return fmt.Errorf("%d of %d messages after 2 minutes", l.count.Load(), n)
		}
	}
	return nil
}

func (l *ledger) check() error {
	for i := range l.seen {
		if n := l.seen[i].Load(); n != 1 {
			return fmt.Errorf("message %d arrived %d times", i, n)
		}
	}
	return nil
}

const payloadSize = 256

// noise is where payloads come from: random bytes, so that no compression helps.
var noise = func() []byte {
	b := make([]byte, 1<<20)
	_, _ = rand.Read(b)
	return b
}()

func payload(number int) []byte {
	b := make([]byte, payloadSize)
	copy(b, noise[number*31%(len(noise)-payloadSize):])
	binary.BigEndian.PutUint64(b, uint64(number))
	return b
}

// keys are 1,000 customers.
var keys = func() (keys [1000]string) {
	for i := range keys {
		keys[i] = "customer-" + strconv.Itoa(i)
	}
	return keys
}()

// spread calls f with the numbers of each call, from goroutines at once.
func spread(first, n, goroutines, perCall int, f func(numbers []int) error) error {
	var next atomic.Int64
	errs := make(chan error, goroutines)
	for range goroutines {
		go func() {
			numbers := make([]int, 0, perCall)
			for {
				at := int(next.Add(int64(perCall))) - perCall
				if at >= n {
					errs <- nil
					return
				}
				numbers = numbers[:0]
				for i := at; i < min(at+perCall, n); i++ {
					numbers = append(numbers, first+i)
				}
				if err := f(numbers); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	var err error
	for range goroutines {
		if e := <-errs; err == nil {
			err = e
		}
	}
	return err
}

// opener finds the library's side for the broker, or nil if there is none.
func opener(library, broker string) func(ctx context.Context, url string) (side, error) {
	switch library {
	case "millrace":
		return openMillrace
	case "watermill":
		return watermills[broker]
	default:
		return raws[broker]
	}
}
