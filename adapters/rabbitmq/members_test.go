package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/millrace-go/millrace/bus"
)

// ledger is where members of a group write down the messages that they handled, to check order and
// overlap by key.
type ledger struct {
	mu      sync.Mutex
	seen    map[string]int
	highest map[string]string
	by      map[string]int // messages by member
	faults  []string
	changed chan struct{}
}

func newLedger() *ledger {
	return &ledger{seen: map[string]int{}, highest: map[string]string{}, by: map[string]int{}, changed: make(chan struct{})}
}

func (l *ledger) note(member string, m *bus.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[m.ID]++; l.seen[m.ID] > 1 {
		l.faults = append(l.faults, fmt.Sprintf("%s came again, to %s", m.ID, member))
		return
	}
	if m.ID < l.highest[m.Key] {
		l.faults = append(l.faults, fmt.Sprintf("key %s: %s after %s", m.Key, m.ID, l.highest[m.Key]))
	}
	l.highest[m.Key] = m.ID
	l.by[member]++
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *ledger) wait(t testing.TB, ctx context.Context, n int) {
	t.Helper()
	for {
		l.mu.Lock()
		have, changed := len(l.seen), l.changed
		l.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%d of %d messages: %v", have, n, ctx.Err())
		}
	}
}

// member is a group's member. It handles its messages one by one, and lets a lane go only between
// two.
type member struct {
	*observer
	name   string
	source bus.Source
	mu     sync.Mutex // held while handling
	left   bool
	gone   map[bus.Lane]bool // given up
	ended  chan struct{}
}

// leave ends the handling, and then the membership.
func (m *member) leave(t testing.TB, ctx context.Context) {
	t.Helper()
	m.mu.Lock()
	m.left = true
	m.mu.Unlock()
	if err := m.source.Close(ctx); err != nil {
		t.Error(err)
	}
	<-m.ended
}

func join(t testing.TB, d *busDriver, sub bus.Subscription, name string, l *ledger) *member {
	t.Helper()
	m := &member{observer: newObserver(), name: name, ended: make(chan struct{}), gone: map[bus.Lane]bool{}}
	m.revoking = func(_ context.Context, lanes []bus.Lane) {
		m.mu.Lock() // the running handler has ended
		defer m.mu.Unlock()
		m.gone[lanes[0]] = true
	}
	m.source = subscribe(t, d, sub, m)
	go func() {
		defer close(m.ended)
		dst := make([]bus.Delivery, 16)
		for {
			n, err := m.source.Receive(context.Background(), dst, 1<<20)
			m.mu.Lock()
			taken := slices.DeleteFunc(dst[:n:n], func(d bus.Delivery) bool {
				return m.left || m.gone[bus.Lane{ID: d.Lane, Epoch: d.Epoch}]
			})
			for _, d := range taken {
				l.note(name, d.Message)
			}
			if len(taken) > 0 {
				if err := m.source.Settle(context.Background(), tokens(taken)); err != nil {
					t.Errorf("%s: settle: %v", name, err)
				}
			}
			m.mu.Unlock()
			if errors.Is(err, bus.ErrClosed) {
				return
			}
		}
	}()
	return m
}

func TestMembersShare(t *testing.T) {
	for _, queue := range []string{Quorum, Classic} {
		t.Run(queue, func(t *testing.T) {
			ctx := testContext(t)
			topic := newTopic(t, "g")
			c := brokerConfig(t)
			c.Queue = queue
			l := newLedger()
			sub := bus.Subscription{Topic: topic, Group: "g", InFlight: 100}
			pub, one, two := openDriver(t, c), openDriver(t, c), openDriver(t, c)
			a := join(t, one, sub, "a", l)
			a.waitLanes(t, ctx, DefaultLanes)
			const total = 6000
			half := make(chan struct{})
			var publisher sync.WaitGroup
			defer publisher.Wait()
			publisher.Go(func() {
				for i := 0; i < total; i += 50 {
					if i == total/2 {
						<-half // the second half is published when both have lanes
					}
					publish(t, pub, topic, messages(i, i+50, 40)...)
				}
			})
			l.wait(t, ctx, 200)
			b := join(t, two, sub, "b", l)
			a.waitLanes(t, ctx, DefaultLanes/2)
			b.waitLanes(t, ctx, DefaultLanes/2)
			close(half)
			l.wait(t, ctx, total*3/4)
			// One leaves, and its lanes go on with the other.
			a.leave(t, ctx)
			b.waitLanes(t, ctx, DefaultLanes)
			l.wait(t, ctx, total)
			l.mu.Lock()
			defer l.mu.Unlock()
			t.Log(l.by)
			for name, n := range l.by {
				if n < total/10 {
					t.Errorf("%s handled only %d", name, n)
				}
			}
			for _, faults := range [][]string{l.faults, a.faults, b.faults} {
				for _, f := range faults {
					t.Error(f)
				}
			}
			if len(a.lost)+len(b.lost) > 0 {
				t.Errorf("lanes were lost: %v %v", a.lost, b.lost)
			}
		})
	}
}

// Without any message, members learn which lanes they own, and share them.
func TestIdleMembersShare(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	sub := bus.Subscription{Topic: topic, Group: "g"}
	l := newLedger()
	var ms []*member
	for _, name := range []string{"a", "b", "c"} {
		ms = append(ms, join(t, d, sub, name, l))
	}
	all := func(t *testing.T, ms []*member, want string) {
		t.Helper()
		for {
			got, sum := []int{}, 0
			changed := make([]chan struct{}, len(ms))
			for i, m := range ms {
				m.observer.mu.Lock()
				got, changed[i] = append(got, len(m.owned)), m.changed
				sum += len(m.owned)
				m.observer.mu.Unlock()
			}
			lo, hi := got[0], got[0]
			for _, n := range got {
				lo, hi = min(lo, n), max(hi, n)
			}
			share := (DefaultLanes + len(ms) - 1) / len(ms)
			if sum == DefaultLanes && hi <= share && lo > 0 {
				return
			}
			moved := make(chan struct{})
			stop := make(chan struct{})
			var once sync.Once
			for _, c := range changed {
				go func() {
					select {
					case <-c:
						once.Do(func() { close(moved) })
					case <-stop:
					}
				}()
			}
			select {
			case <-moved:
			case <-ctx.Done():
				t.Fatalf("%s: lanes %v", want, got)
			}
			close(stop)
		}
	}
	all(t, ms, "three members")
	ms[1].leave(t, ctx)
	all(t, []*member{ms[0], ms[2]}, "two members")
}

// A member that is counted for a moment only, such as one with a connection that just ended, makes
// nobody give up lanes.
func TestPassingMember(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	o := newObserver()
	revoked := make(chan []bus.Lane, DefaultLanes)
	o.revoking = func(_ context.Context, lanes []bus.Lane) { revoked <- lanes }
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o).(*source)
	o.waitLanes(t, ctx, DefaultLanes)
	for range 10 {
		passing := &membership{source: s, session: d.consume.Current()}
		if err := passing.join(); err != nil {
			t.Fatal(err)
		}
		s.rebalance()
		for len(s.balance) > 0 { // until the member looks
			runtime.Gosched()
		}
		passing.leave()
		s.rebalance()
	}
	// A member that stays is given its share.
	o2 := newObserver()
	subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o2)
	o2.waitLanes(t, ctx, DefaultLanes/2)
	if n := len(revoked); n != DefaultLanes/2 {
		t.Errorf("%d lanes were given up, want %d", n, DefaultLanes/2)
	}
}

// A settle after the lane has gone to another member is refused, and the message is handled there.
func TestStaleSettle(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	sub := bus.Subscription{Topic: topic, Group: "g"}
	o := newObserver()
	a := subscribe(t, d, sub, o)
	o.waitLanes(t, ctx, DefaultLanes)
	publish(t, d, topic, messages(0, 200, 200)...)
	got := receive(t, ctx, a, 200)
	o2 := newObserver()
	b := subscribe(t, d, sub, o2)
	o2.waitLanes(t, ctx, DefaultLanes/2)
	var kept, moved []bus.Delivery
	for _, m := range got {
		o.mu.Lock()
		if o.owned[bus.Lane{ID: m.Lane, Epoch: m.Epoch}] {
			kept = append(kept, m)
		} else {
			moved = append(moved, m)
		}
		o.mu.Unlock()
	}
	if len(kept) == 0 || len(moved) == 0 {
		t.Fatalf("%d kept, %d moved", len(kept), len(moved))
	}
	if err := a.Settle(ctx, tokens(got)); !errors.Is(err, bus.ErrStale) {
		t.Errorf("settle of %d stale tokens: %v", len(moved), err)
	}
	if err := a.Settle(ctx, []bus.Token{{Lane: 99}, {Lane: -1}, {Lane: 0, Epoch: 1}}); !errors.Is(err, bus.ErrStale) {
		t.Errorf("invented tokens: %v", err)
	}
	again := receive(t, ctx, b, len(moved))
	ids := map[string]bool{}
	for _, m := range moved {
		ids[m.ID] = true
	}
	for _, m := range again {
		if !ids[m.ID] {
			t.Errorf("%s came again, though it was settled", m.ID)
		}
		if len(m.Headers) != 0 {
			t.Errorf("%s has headers that nobody gave it: %v", m.ID, m.Headers)
		}
	}
	settle(t, b, again)
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Settle(ctx, tokens(kept)); !errors.Is(err, bus.ErrStale) || !errors.Is(err, bus.ErrClosed) {
		t.Errorf("settle after close: %v", err)
	}
	if n, err := a.Receive(ctx, make([]bus.Delivery, 1), 1); n != 0 || !errors.Is(err, bus.ErrClosed) {
		t.Errorf("receive after close: %d, %v", n, err)
	}
}

// A lane that a member gives up goes to a member that has fewer lanes. It passes by members that
// have their share, before they handle any of its messages. So each lane moves once, and the
// sharing does not interrupt a handler that takes long.
func TestLanesDoNotWander(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	sub := bus.Subscription{Topic: topic, Group: "g", InFlight: 100}
	var mu sync.Mutex
	revoked := 0
	member := func() *observer {
		o := newObserver()
		o.revoking = func(context.Context, []bus.Lane) {
			mu.Lock()
			defer mu.Unlock()
			revoked++
		}
		subscribe(t, d, sub, o)
		return o
	}
	a := member()
	a.waitLanes(t, ctx, 8)
	b := member()
	b.waitLanes(t, ctx, 4)
	a.waitLanes(t, ctx, 4)
	c := member()
	c.waitLanes(t, ctx, 2)
	a.waitLanes(t, ctx, 3)
	b.waitLanes(t, ctx, 3)
	mu.Lock()
	defer mu.Unlock()
	if revoked != 6 {
		t.Errorf("%d lanes were given up, want 4 to the second member and 2 to the third", revoked)
	}
}
