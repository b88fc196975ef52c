package all_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// Processes that are killed are this test's binary, which TestMain turns into one of these by this variable.
const killedRole = "MILLRACE_TEST_ROLE"

var killedRoles = map[string]func(ctx context.Context, b *bus.Bus, topic, group string) error{
	"delays":       delaysUntilKilled,
	"cancelled":    delaysUntilKilled,
	"at most once": handlesOnceUntilKilled,
	"replay":       replaysUntilKilled,
	"load":         waitsUntilKilled,
}

func TestMain(m *testing.M) {
	if role := os.Getenv(killedRole); role != "" {
		b, err := bus.Open(context.Background(), os.Args[1])
		if err == nil {
			err = killedRoles[role](context.Background(), b, os.Args[2], os.Args[3])
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(testlog.Strict(m).Run())
}

// TestKilled kills the only member of a group with SIGKILL, on every broker that outlives a process.
func TestKilled(t *testing.T) {
	testlog.Expect(t, "message poisoned")
	for _, role := range []struct {
		name  string
		test  func(t *testing.T, k *killed)
		alone bool
	}{
		{name: "delays", test: killedWhileWaiting},
		{name: "cancelled", test: killedWhileCancelling},
		{name: "at most once", test: killedAtMostOnce},
		{name: "replay", test: killedReplay},
		{name: "load", test: killedLoad, alone: true}, // it measures
	} {
		t.Run(role.name, func(t *testing.T) {
			for _, broker := range []struct {
				name string
				url  func(t *testing.T) string
				drop func(t testing.TB, b *bus.Bus, topic, group string)
			}{
				{"sqlite", func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "bus.db") + "?lease=2s" }, nil},
				{"kafka", func(t *testing.T) string { return brokertest.With(brokertest.URL(t, "kafka"), "session=6s") }, dropKafka},
				{"rabbitmq", func(t *testing.T) string { return brokertest.URL(t, "rabbitmq") }, dropRabbitMQ},
				{"postgres", func(t *testing.T) string { return brokertest.With(brokertest.Postgres(t), "lease=2s") }, nil},
				{"mysql", func(t *testing.T) string { return brokertest.With(brokertest.MySQL(t), "lease=2s") }, nil},
			} {
				t.Run(broker.name, func(t *testing.T) {
					if !role.alone {
						t.Parallel()
					}
					k := newKilled(t, broker.url(t), role.name)
					k.drop = broker.drop
					k.owns(t, k.topic)
					role.test(t, k)
				})
			}
		})
	}
}

// killed is a process that the test kills. It prints everything it does, and a pipe keeps the
// output.
type killed struct {
	ctx               context.Context
	url, topic, group string
	bus               *bus.Bus // of this process
	role              string
	process           *exec.Cmd
	lines             *bufio.Scanner
	drop              func(t testing.TB, b *bus.Bus, topic, group string) // nil: not needed
}

func newKilled(t *testing.T, url, role string) *killed {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	b, err := bus.Open(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	tag := bus.NewID()
	return &killed{ctx: ctx, url: url, role: role, topic: "killed-" + tag, group: "g-" + tag, bus: b}
}

// owns has a topic deleted at the end, with its group's state there.
func (k *killed) owns(t *testing.T, topic string) {
	if k.drop != nil {
		t.Cleanup(func() { k.drop(t, k.bus, topic, k.group) })
	}
}

func (k *killed) start(t *testing.T) {
	t.Helper()
	k.process = exec.CommandContext(k.ctx, os.Args[0], k.url, k.topic, k.group)
	k.process.Env = append(os.Environ(), killedRole+"="+k.role)
	k.process.Stderr = os.Stderr
	out, err := k.process.StdoutPipe()
	if err == nil {
		err = k.process.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	k.lines = bufio.NewScanner(out)
}

// until reads lines until one makes enough true. Then it kills the process, and reads the lines
// printed by then.
func (k *killed) until(t *testing.T, note func(line string) (enough bool)) {
	t.Helper()
	for k.lines.Scan() && !note(k.lines.Text()) {
	}
	if err := k.process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for k.lines.Scan() {
		note(k.lines.Text())
	}
	_ = k.process.Wait() // it was killed
}

func (k *killed) publish(t *testing.T, msgs []*bus.Message) {
	t.Helper()
	if err := k.bus.PublishMessages(k.ctx, k.topic, msgs...); err != nil {
		t.Fatal(err)
	}
}

// run runs a router in this process until done.
func (k *killed) run(t *testing.T, r *router.Router, done func() bool) {
	t.Helper()
	ctx, stop := context.WithCancel(k.ctx)
	defer stop()
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	for tick := time.NewTicker(10 * time.Millisecond); !done(); {
		select {
		case <-tick.C: // a message that a broker has not delivered causes no event
		case err := <-over:
			t.Fatalf("the router ended: %v", err)
		}
	}
	stop()
	if err := <-over; err != nil {
		t.Error(err)
	}
}

const (
	killedWait = 8 * time.Second
	killedKeys = 40
)

// delaysUntilKilled has a key's first message wait if the key says so, and tells when all of them do.
func delaysUntilKilled(ctx context.Context, b *bus.Bus, topic, group string) error {
	r := router.New(b, group)
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		if strings.HasPrefix(m.Key, "slow") {
			fmt.Println("failed", m.ID)
			return bus.RetryAfter(errors.New("later"), killedWait)
		}
		fmt.Println("handled", m.ID)
		return nil
	})
	tellWhenParked(r, killedKeys)
	return r.Run(ctx)
}

// tellWhenParked prints a line when so many messages have failed and nothing is in flight any more.
func tellWhenParked(r *router.Router, failed uint64) {
	r.Go("parked", func(ctx context.Context) error {
		tick := time.NewTicker(10 * time.Millisecond)
		for h := r.Health().Routes[0]; h.Failed < failed || h.InFlight > 0; h = r.Health().Routes[0] {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
		}
		fmt.Println("parked all")
		<-ctx.Done()
		return nil
	})
}

// killedWhileWaiting: a message that waits when its process is killed comes to the next, in its
// key's order and not too early.
func killedWhileWaiting(t *testing.T, k *killed) {
	const keys, each = killedKeys, 5
	k.start(t)
	var msgs []*bus.Message
	for i := range each {
		for n := range keys {
			msgs = append(msgs, &bus.Message{ID: fmt.Sprintf("slow-%d/%d", n, i), Key: fmt.Sprint("slow-", n)},
				&bus.Message{ID: fmt.Sprintf("quick-%d/%d", n, i), Key: fmt.Sprint("quick-", n)})
		}
	}
	k.publish(t, msgs)
	parked := false
	failed := map[string]time.Time{}
	handled := map[string]bool{}
	k.until(t, func(line string) bool {
		switch what, id, _ := strings.Cut(line, " "); what {
		case "failed":
			failed[id] = time.Now()
		case "handled":
			handled[id] = true
		case "parked":
			parked = true
		}
		return parked && len(handled) == keys*each
	})
	killedAt := time.Now()
	var mu sync.Mutex
	next := map[string]int{}
	r := router.New(k.bus, k.group)
	r.HandleFunc(k.topic, func(ctx context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if handled[m.ID] {
			return nil // a repeat of an uncommitted message
		}
		handled[m.ID] = true
		if at, ok := failed[m.ID]; ok && (time.Since(at) < killedWait-time.Second || bus.DeliveryFrom(ctx).Attempt != 2) {
			t.Errorf("%s came again after %v, as try %d", m.ID, time.Since(at), bus.DeliveryFrom(ctx).Attempt)
		}
		if want := fmt.Sprintf("%s/%d", m.Key, next[m.Key]); m.ID != want {
			t.Errorf("%s came, want %s", m.ID, want)
		}
		next[m.Key]++
		return nil
	})
	k.run(t, r, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(handled) == len(msgs) || k.ctx.Err() != nil
	})
	if len(handled) != len(msgs) {
		t.Errorf("%d of %d were handled", len(handled), len(msgs))
	}
	t.Logf("all was handled %v after the kill", time.Since(killedAt).Round(time.Millisecond))
}

// cancelledWait is when the cancelled messages would be due: when another process has the lanes.
const cancelledWait = 12 * time.Second

// killedWhileCancelling: a cancelled message does not come, whether the process that had parked it
// has seen the cancellation or not.
func killedWhileCancelling(t *testing.T, k *killed) {
	k.start(t)
	var delayed, cancelled, unseen, marks []*bus.Message
	for n := range killedKeys {
		key := fmt.Sprint("quick-", n)
		for i, id := range []string{"gone-", "stays-"} {
			m := &bus.Message{ID: id + key, Key: key}
			bus.WithDelay(cancelledWait + time.Duration(i)*time.Second)(m)
			delayed = append(delayed, m)
		}
		c := &bus.Message{Key: key, Type: bus.TypeCancellation, Headers: bus.Headers{{Name: bus.HeaderCancels, Value: "gone-" + key}}}
		if n%2 == 0 {
			cancelled = append(cancelled, c)
		} else {
			unseen = append(unseen, c)
		}
		marks = append(marks, &bus.Message{ID: "mark-" + key, Key: key})
	}
	k.publish(t, delayed)
	k.publish(t, cancelled)
	k.publish(t, marks)
	handled := map[string]bool{}
	k.until(t, func(line string) bool {
		if what, id, _ := strings.Cut(line, " "); what == "handled" {
			handled[id] = true
		}
		return len(handled) == killedKeys
	})
	k.publish(t, unseen)
	var mu sync.Mutex
	stays := map[string]bool{}
	r := router.New(k.bus, k.group)
	r.HandleFunc(k.topic, func(_ context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		switch what, _, _ := strings.Cut(m.ID, "-"); what {
		case "gone":
			t.Errorf("%s came, although it was cancelled", m.ID)
		case "stays":
			stays[m.ID] = true
		}
		return nil
	})
	k.run(t, r, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(stays) == killedKeys || k.ctx.Err() != nil
	})
	if len(stays) != killedKeys {
		t.Errorf("%d of %d others came", len(stays), killedKeys)
	}
}

const killedWorkers = 4

func handlesOnceUntilKilled(ctx context.Context, b *bus.Bus, topic, group string) error {
	r := router.New(b, group, router.Guarantee(router.AtMostOnce), router.Workers(killedWorkers))
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		fmt.Println(m.ID)
		return nil
	})
	return r.Run(ctx)
}

// killedAtMostOnce: no message that was begun when the process was killed is handled again, and
// only its workers' messages are lost.
func killedAtMostOnce(t *testing.T, k *killed) {
	k.start(t)
	const total = 5000
	var msgs []*bus.Message
	for i := range total {
		msgs = append(msgs, &bus.Message{ID: fmt.Sprint(i), Key: fmt.Sprint(i % 50)})
	}
	k.publish(t, msgs)
	begun := map[string]int{}
	k.until(t, func(line string) bool {
		begun[line]++
		return len(begun) == 200
	})
	before := len(begun)
	if before == total {
		t.Fatal("it was killed too late: the test shows nothing")
	}
	var mu sync.Mutex
	last := &bus.Message{ID: "last"}
	r := router.New(k.bus, k.group, router.Guarantee(router.AtMostOnce))
	r.HandleFunc(k.topic, func(_ context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		begun[m.ID]++
		return nil
	})
	k.publish(t, []*bus.Message{last})
	k.run(t, r, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return begun[last.ID] > 0 && len(begun)-1 >= total-killedWorkers || k.ctx.Err() != nil
	})
	lost := total + 1 - len(begun)
	if lost > killedWorkers {
		t.Errorf("%d were lost, with %d workers", lost, killedWorkers)
	}
	for id, n := range begun {
		if n > 1 {
			t.Errorf("%s was handled %d times", id, n)
		}
	}
	t.Logf("%d before the kill, %d lost", before, lost)
}

// replaysUntilKilled replays a group's poison queue, and says how far it is.
func replaysUntilKilled(ctx context.Context, b *bus.Bus, _, group string) error {
	q, err := poison.Open(ctx, b, group)
	if err != nil {
		return err
	}
	_, err = q.Replay(ctx, poison.Filter{}, poison.Options{Progress: func(done, _ int) { fmt.Println(done) }})
	return err
}

// poisonedHook counts poisoned messages.
type poisonedHook chan struct{}

func (h poisonedHook) Poisoned(context.Context, driver.PoisonEntry) { h <- struct{}{} }

// killedReplay: a replay whose process is killed loses nothing; the next one goes on, and repeats at most a part.
func killedReplay(t *testing.T, k *killed) {
	const total = 1000
	var mu sync.Mutex
	refuses := true
	handled := map[string]int{}
	all := make(chan struct{})
	ctx, stop := context.WithCancel(k.ctx)
	refused := make(poisonedHook, total)
	r := router.New(k.bus, k.group, router.Hooks(refused))
	r.HandleFunc(k.topic, func(_ context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if refuses {
			return bus.Permanent(errors.New("refused"))
		}
		if handled[m.ID]++; handled[m.ID] == 1 && len(handled) == total {
			close(all)
		}
		return nil
	})
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	var msgs []*bus.Message
	for i := range total {
		msgs = append(msgs, &bus.Message{ID: fmt.Sprint(i), Key: fmt.Sprint(i % 50)})
	}
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	k.publish(t, msgs)
	q, err := poison.Open(ctx, k.bus, k.group)
	if err != nil {
		t.Fatal(err)
	}
	left := func() int {
		n, err := q.Count(ctx, poison.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range total {
		select {
		case <-refused:
		case <-ctx.Done():
			t.Fatal("not all were poisoned")
		}
	}
	mu.Lock()
	refuses = false
	mu.Unlock()
	k.start(t)
	k.until(t, func(line string) bool { return line != "0" })
	after := left()
	if after == 0 {
		t.Fatal("it was killed too late: the test shows nothing")
	}
	result, err := q.Replay(ctx, poison.Filter{}, poison.Options{})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-all:
	case <-ctx.Done():
	}
	stop()
	if err := <-over; err != nil {
		t.Error(err)
	}
	twice := 0
	for _, n := range handled {
		twice += n - 1
	}
	if len(handled) != total || twice > total/4 {
		t.Errorf("%d of %d were handled, %d of them again", len(handled), total, twice)
	}
	t.Logf("%d were left after the kill, %d of them replayed; %d came twice", after, result.Done, twice)
}
