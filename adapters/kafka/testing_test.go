package kafka_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testlog.Strict(m)) }

// within bounds a test's waits. Nothing is expected to take this long.
func within(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	tb.Cleanup(cancel)
	return ctx
}

// open opens a bus that is closed with the test.
func open(tb testing.TB, c kafka.Config) *bus.Bus {
	tb.Helper()
	b, err := kafka.Open(within(tb), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := b.Close(); err != nil {
			tb.Errorf("close: %v", err)
		}
	})
	return b
}

// realConfig is the configuration of the real broker.
func realConfig(tb testing.TB) kafka.Config {
	tb.Helper()
	c, err := kafka.ParseURL(brokertest.URL(tb, "kafka"))
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// name makes a topic or group name of its own.
func name(prefix string) string { return prefix + "-" + bus.NewID() }

// observer records its calls, and lets a test say what Revoking waits for.
type observer struct {
	revoking func(ctx context.Context, lanes []bus.Lane)

	mu     sync.Mutex
	change chan struct{}
	owned  map[int32]uint64
	lost   []bus.Lane
	wrong  map[string]error // the conditions that last
}

func newObserver() *observer {
	return &observer{owned: map[int32]uint64{}, change: make(chan struct{}), wrong: map[string]error{}}
}

func (o *observer) changed() {
	close(o.change)
	o.change = make(chan struct{})
}

// Condition implements driver.ConditionObserver.
func (o *observer) Condition(what string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.wrong[what] = err; err == nil {
		delete(o.wrong, what)
	}
	o.changed()
}

// toldOf waits until a condition is told whose name contains text, and returns its error.
func (o *observer) toldOf(tb testing.TB, text string) (err error) {
	tb.Helper()
	o.until(tb, text, func(o *observer) bool {
		for what, why := range o.wrong {
			if strings.Contains(what, text) {
				err = why
			}
		}
		return err != nil
	})
	return err
}

// untilWell waits until no condition lasts.
func (o *observer) untilWell(tb testing.TB) {
	tb.Helper()
	o.until(tb, "all conditions end", func(o *observer) bool { return len(o.wrong) == 0 })
}

func (o *observer) Assigned(lanes []bus.Lane) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range lanes {
		o.owned[l.ID] = l.Epoch
	}
	o.changed()
}

func (o *observer) Revoking(ctx context.Context, lanes []bus.Lane) {
	if o.revoking != nil {
		o.revoking(ctx, lanes)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range lanes {
		delete(o.owned, l.ID)
	}
	o.changed()
}

func (o *observer) Lost(lanes []bus.Lane, _ error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range lanes {
		if o.owned[l.ID] == l.Epoch {
			delete(o.owned, l.ID)
		}
		o.lost = append(o.lost, l)
	}
	o.changed()
}

// until waits until the observer's state satisfies ok.
func (o *observer) until(tb testing.TB, what string, ok func(*observer) bool) {
	tb.Helper()
	ctx := within(tb)
	for {
		o.mu.Lock()
		good, change := ok(o), o.change
		o.mu.Unlock()
		if good {
			return
		}
		select {
		case <-change:
		case <-ctx.Done():
			tb.Fatalf("never happened: %s", what)
		}
	}
}

func owns(n int) func(*observer) bool {
	return func(o *observer) bool { return len(o.owned) == n }
}

// subscribe subscribes, and closes the source with the test.
func subscribe(tb testing.TB, b *bus.Bus, topic, group string, start bus.Start, o bus.LaneObserver) bus.Source {
	tb.Helper()
	s, err := b.Driver().Subscribe(within(tb), bus.Subscription{Topic: topic, Group: group, Start: start, InFlight: 1000, Bytes: 8 << 20}, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { closeSource(tb, s) })
	return s
}

func closeSource(tb testing.TB, s bus.Source) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		tb.Errorf("close the source: %v", err)
	}
}

// receive receives n messages.
func receive(tb testing.TB, s bus.Source, n int) []bus.Delivery {
	tb.Helper()
	ctx := within(tb)
	var got []bus.Delivery
	buf := make([]bus.Delivery, 100)
	for len(got) < n {
		k, err := s.Receive(ctx, buf[:min(len(buf), n-len(got))], 1<<20)
		if err != nil {
			tb.Fatalf("after %d of %d messages: %v", len(got), n, err)
		}
		got = append(got, buf[:k]...)
	}
	return got
}

func settle(tb testing.TB, s bus.Source, ds ...bus.Delivery) {
	tb.Helper()
	tokens := make([]bus.Token, len(ds))
	for i := range ds {
		tokens[i] = ds[i].Token
	}
	if err := s.Settle(within(tb), tokens); err != nil {
		tb.Fatal(err)
	}
}

func publish(tb testing.TB, b *bus.Bus, topic string, ms ...*bus.Message) {
	tb.Helper()
	if err := b.PublishMessages(within(tb), topic, ms...); err != nil {
		tb.Fatal(err)
	}
}

// texts are messages with these payloads, all of one key.
func texts(payloads ...string) []*bus.Message {
	ms := make([]*bus.Message, len(payloads))
	for i, p := range payloads {
		ms[i] = &bus.Message{Key: "k", Payload: []byte(p)}
	}
	return ms
}

func payloads(ds []bus.Delivery) []string {
	out := make([]string, len(ds))
	for i := range ds {
		out[i] = string(ds[i].Payload)
	}
	return out
}

// fakeCluster starts a cluster inside the test.
func fakeCluster(tb testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	tb.Helper()
	opts = append([]kfake.Opt{kfake.NumBrokers(2), kfake.GroupMinSessionTimeout(100 * time.Millisecond)}, opts...)
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

// fakeConfig is the configuration for a cluster inside the test. New topics get four partitions.
func fakeConfig(c *kfake.Cluster) kafka.Config {
	return kafka.Config{Brokers: c.ListenAddrs(), Partitions: 4, CommitInterval: 5 * time.Millisecond}
}
