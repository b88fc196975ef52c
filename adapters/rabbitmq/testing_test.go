package rabbitmq

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testlog.Strict(m)) }

func brokerConfig(t testing.TB) Config {
	t.Helper()
	c, err := ParseURL(brokertest.URL(t, "rabbitmq"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// testContext bounds a test, so that a hang is a failure with a stack.
func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func openDriver(t testing.TB, c Config) *busDriver {
	t.Helper()
	d, err := open(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(testContext(t)); err != nil {
			t.Error("close:", err)
		}
	})
	return d
}

// newName returns a name that no other test run uses, and deletes at the end the objects declared
// under it.
func newName(t testing.TB, what string) string {
	return fmt.Sprintf("test-%s-%08x", what, rand.Uint32())
}

// newTopic is newName for a topic, which is deleted at the end with the groups named.
func newTopic(t testing.TB, groups ...string) string {
	t.Helper()
	topic := newName(t, "topic")
	c := brokerConfig(t)
	t.Cleanup(func() { deleteTopic(t, c, topic, groups) })
	return topic
}

func deleteTopic(t testing.TB, c Config, topic string, groups []string) {
	t.Helper()
	d, err := open(context.Background(), c)
	if err != nil {
		t.Error(err)
		return
	}
	defer d.Close(context.Background())
	s, err := d.pub.link.Get(context.Background())
	if err != nil {
		t.Error(err)
		return
	}
	tp := &topology{session: s}
	defer tp.close()
	exchanges, queues := []string{topic, unroutedName(topic), groupsName(topic)}, []string{unroutedName(topic)}
	for _, g := range groups {
		name := groupName(topic, g)
		lanes, err := d.existingLanes(tp, name)
		if err != nil {
			continue
		}
		exchanges = append(exchanges, name, lanesName(name, lanes), readyName(name), movedName(name), latestName(name))
		for i := range lanes {
			queues = append(queues, laneName(name, i), earlyName(name, i), parkedName(name, i))
		}
	}
	for _, e := range exchanges {
		if ch, err := tp.channel(); err == nil {
			_ = ch.ExchangeDelete(e, false, false)
		}
	}
	for _, q := range queues {
		_ = tp.deleteQueue(q)
	}
}

// observer records the news that a driver tells of lanes.
type observer struct {
	mu       sync.Mutex
	owned    map[bus.Lane]bool
	lost     []bus.Lane
	changed  chan struct{}
	revoking func(context.Context, []bus.Lane) // called in Revoking, if set
	faults   []string
	wrong    map[string]error // the conditions that last
}

func newObserver() *observer {
	return &observer{owned: map[bus.Lane]bool{}, wrong: map[string]error{}, changed: make(chan struct{})}
}

// Condition implements driver.ConditionObserver.
func (o *observer) Condition(what string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.wrong[what] = err; err == nil {
		delete(o.wrong, what)
	}
	o.note()
}

// toldOf waits until a condition is told whose name or error contains text, and returns its error.
func (o *observer) toldOf(t testing.TB, ctx context.Context, text string) (err error) {
	t.Helper()
	o.wait(t, ctx, text, func() bool {
		for what, why := range o.wrong {
			if strings.Contains(what+": "+why.Error(), text) {
				err = why
			}
		}
		return err != nil
	})
	return err
}

// waitWell waits until no condition lasts.
func (o *observer) waitWell(t testing.TB, ctx context.Context) {
	t.Helper()
	o.wait(t, ctx, "all conditions to end", func() bool { return len(o.wrong) == 0 })
}

func (o *observer) note() {
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *observer) Assigned(lanes []bus.Lane) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range lanes {
		if o.owned[l] {
			o.faults = append(o.faults, fmt.Sprintf("lane %v assigned twice", l))
		}
		o.owned[l] = true
	}
	o.note()
}

func (o *observer) Revoking(ctx context.Context, lanes []bus.Lane) {
	o.mu.Lock()
	f := o.revoking
	o.mu.Unlock()
	if f != nil {
		f(ctx, lanes)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range lanes {
		if !o.owned[l] {
			o.faults = append(o.faults, fmt.Sprintf("lane %v revoked and not owned", l))
		}
		delete(o.owned, l)
	}
	o.note()
}

func (o *observer) Lost(lanes []bus.Lane, cause error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if cause == nil {
		o.faults = append(o.faults, "lost without a cause")
	}
	for _, l := range lanes {
		o.lost = append(o.lost, l)
		delete(o.owned, l)
	}
	o.note()
}

// wait waits until cond is true; it is called with mu held.
func (o *observer) wait(t testing.TB, ctx context.Context, what string, cond func() bool) {
	t.Helper()
	for {
		o.mu.Lock()
		ok, changed := cond(), o.changed
		o.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, ctx.Err())
		}
	}
}

func (o *observer) waitLanes(t testing.TB, ctx context.Context, n int) {
	t.Helper()
	o.wait(t, ctx, fmt.Sprintf("%d lanes", n), func() bool { return len(o.owned) == n })
}

func subscribe(t testing.TB, d *busDriver, sub bus.Subscription, o bus.LaneObserver) bus.Source {
	t.Helper()
	if sub.InFlight == 0 {
		sub.InFlight = 1000
	}
	if sub.Bytes == 0 {
		sub.Bytes = 64 << 20
	}
	s, err := d.Subscribe(testContext(t), sub, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(testContext(t)); err != nil {
			t.Error("close source:", err)
		}
	})
	return s
}

// receive collects n deliveries.
func receive(t testing.TB, ctx context.Context, s bus.Source, n int) []bus.Delivery {
	t.Helper()
	var got []bus.Delivery
	dst := make([]bus.Delivery, 100)
	for len(got) < n {
		k, err := receiveSome(ctx, s, dst[:min(len(dst), n-len(got))])
		if err != nil {
			t.Fatalf("receive, after %d of %d: %v", len(got), n, err)
		}
		got = append(got, dst[:k]...)
	}
	return got
}

func tokens(ds []bus.Delivery) []bus.Token {
	ts := make([]bus.Token, len(ds))
	for i := range ds {
		ts[i] = ds[i].Token
	}
	return ts
}

func settle(t testing.TB, s bus.Source, ds []bus.Delivery) {
	t.Helper()
	if err := s.Settle(testContext(t), tokens(ds)); err != nil {
		t.Fatal("settle:", err)
	}
}

// message makes a complete message, as the bus hands it to a driver.
func message(id, key string) *bus.Message {
	return &bus.Message{ID: id, Key: key, Source: "/test", Type: "test", Time: time.Now(), Payload: []byte(id)}
}

func messages(from, to, keys int) []*bus.Message {
	var ms []*bus.Message
	for i := from; i < to; i++ {
		ms = append(ms, message(fmt.Sprintf("m%06d", i), fmt.Sprintf("k%d", i%keys)))
	}
	return ms
}

func publish(t testing.TB, d *busDriver, topic string, ms ...*bus.Message) {
	t.Helper()
	if err := d.Publish(testContext(t), topic, ms); err != nil {
		t.Fatal("publish:", err)
	}
}

// checkOrder checks that the deliveries have each id from to to-1 of messages once, and each key's
// in order.
func checkOrder(t testing.TB, ds []bus.Delivery, from, to int) {
	t.Helper()
	seen := map[string]int{}
	last := map[string]string{}
	for _, d := range ds {
		seen[d.ID]++
		if d.ID <= last[d.Key] {
			t.Errorf("key %s: %s after %s", d.Key, d.ID, last[d.Key])
		}
		last[d.Key] = d.ID
	}
	for i := from; i < to; i++ {
		if id := fmt.Sprintf("m%06d", i); seen[id] != 1 {
			t.Errorf("%s came %d times", id, seen[id])
		}
	}
	if len(seen) != to-from {
		t.Errorf("%d messages, want %d", len(seen), to-from)
	}
}

// receiveSome is Receive, and again while it tells of an outage.
func receiveSome(ctx context.Context, s bus.Source, dst []bus.Delivery) (int, error) {
	for {
		n, err := s.Receive(ctx, dst, 1<<20)
		if n > 0 || ctx.Err() != nil || err != nil && !bus.IsRetryable(err) {
			return n, err
		}
	}
}
