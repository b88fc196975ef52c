package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// parkingObserver records what it is told of parked messages, too.
type parkingObserver struct {
	*observer
	parked []bus.Parked
}

func (o *parkingObserver) Parked(ps []bus.Parked) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.parked = append(o.parked, ps...)
	o.note()
}

func (o *parkingObserver) told(t testing.TB, ctx context.Context, n int) []bus.Parked {
	t.Helper()
	o.wait(t, ctx, fmt.Sprintf("%d parked messages", n), func() bool { return len(o.parked) >= n })
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.parked) > n {
		t.Errorf("told of %d parked messages, want %d", len(o.parked), n)
	}
	return slices.Clone(o.parked)
}

func parkingSource(t testing.TB, d *driver, topic string) (*source, *parkingObserver) {
	t.Helper()
	o := &parkingObserver{observer: newObserver()}
	return subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o).(*source), o
}

func parkAll(ds []bus.Delivery) []bus.Parking {
	ps := make([]bus.Parking, len(ds))
	for i := range ds {
		ps[i] = bus.Parking{Delivery: ds[i], Due: time.Now().Add(time.Hour)}
	}
	return ps
}

// fetchIDs fetches all that is parked, and returns the sorted ids.
func fetchIDs(t testing.TB, ctx context.Context, s *source, ps []bus.Parked) (ids []string) {
	t.Helper()
	for chunk := range slices.Chunk(ps, 64) {
		var ts []bus.Token
		for _, p := range chunk {
			ts = append(ts, p.Token)
		}
		dst := make([]bus.Delivery, len(ts))
		n, err := s.Fetch(ctx, ts, dst)
		if err != nil {
			t.Fatal("fetch:", err)
		}
		for _, d := range dst[:n] {
			ids = append(ids, d.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func wantIDs(from, to int) (ids []string) {
	for _, m := range messages(from, to, 1) {
		ids = append(ids, m.ID)
	}
	return ids
}

// Ten thousand parked messages go to the next owner, who learns of all and can fetch each.
func TestManyParked(t *testing.T) {
	for _, queue := range []string{Quorum, Classic} {
		t.Run(queue, func(t *testing.T) {
			ctx := testContext(t)
			topic := newTopic(t, "g")
			c := brokerConfig(t)
			c.Queue, c.Lanes = queue, 2
			d := openDriver(t, c)
			s, _ := parkingSource(t, d, topic)
			const total = 10_000
			for i := 0; i < total; i += 500 {
				publish(t, d, topic, messages(i, i+500, total)...)
				if err := s.Park(ctx, parkAll(receive(t, ctx, s, 500))); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(ctx); err != nil {
				t.Fatal(err)
			}
			next, o := parkingSource(t, openDriver(t, c), topic)
			told := o.told(t, ctx, total)
			if got := fetchIDs(t, ctx, next, told); !slices.Equal(got, wantIDs(0, total)) {
				t.Errorf("%d of %d could be fetched", len(got), total)
			}
			// What is given back, so that the broker does not tire of waiting, is still there.
			for _, l := range next.lanes {
				l.current.Load().parking().giveBack()
			}
			if got := fetchIDs(t, ctx, next, told[:200]); len(got) != 200 {
				t.Errorf("%d of 200 could be fetched again", len(got))
			}
			var ts []bus.Token
			for _, p := range told[100:] {
				ts = append(ts, p.Token)
			}
			if err := next.Settle(ctx, ts); err != nil {
				t.Fatal(err)
			}
			if err := next.Close(ctx); err != nil {
				t.Fatal(err)
			}
			last, o := parkingSource(t, d, topic)
			o.waitLanes(t, ctx, c.Lanes)
			if got := fetchIDs(t, ctx, last, o.told(t, ctx, 100)); len(got) != 100 {
				t.Errorf("%d are parked after all but 100 were settled", len(got))
			}
		})
	}
}

// An owner that was cut off while it parked has lost nothing: each message is parked, or comes again.
func TestParkThroughCuts(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	direct := openDriver(t, brokerConfig(t))
	s, o := parkingSource(t, openDriver(t, c), topic)
	o.waitLanes(t, ctx, DefaultLanes)
	const total = 2000
	for i := 0; i < total; i += 100 {
		publish(t, direct, topic, messages(i, i+100, 50)...)
	}
	go func() {
		for range 5 {
			p.cut()
			o.waitLanes(t, ctx, 0)
			o.waitLanes(t, ctx, DefaultLanes)
		}
	}()
	dst := make([]bus.Delivery, 64)
	parked := map[string]bool{}
	for len(parked) < total {
		n, err := s.Receive(ctx, dst, 1<<20)
		if err != nil {
			t.Fatalf("after %d: %v", len(parked), err)
		}
		ps := parkAll(dst[:n])
		if err := s.Park(ctx, ps); err != nil && !errors.Is(err, bus.ErrStale) && !bus.IsRetryable(err) {
			t.Fatal(err)
		}
		for _, p := range ps {
			if p.Token.Parked {
				parked[p.ID] = true
			}
		}
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	next, o := parkingSource(t, direct, topic)
	got := map[string]bool{}
	seen := 0
	for len(got) < total { // a lane's are told after it was assigned, and some were parked twice
		o.wait(t, ctx, fmt.Sprintf("more than %d of %d parked messages", len(got), total), func() bool { return len(o.parked) > seen })
		o.mu.Lock()
		told := slices.Clone(o.parked[seen:])
		o.mu.Unlock()
		seen += len(told)
		for _, id := range fetchIDs(t, ctx, next, told) {
			got[id] = true
		}
	}
	t.Logf("%d records for %d messages", seen, total)
}

// While the broker blocks publishers, a new owner cannot have its marker, and begins nonetheless.
func TestOwnerWhileBlocked(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	direct := openDriver(t, brokerConfig(t))
	s, _ := parkingSource(t, direct, topic)
	publish(t, direct, topic, messages(0, 20, 20)...)
	if err := s.Park(ctx, parkAll(receive(t, ctx, s, 20))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	publish(t, direct, topic, ends("")...) // so that each lane delivers something by itself
	p, c := newProxy(t)
	d := openDriver(t, c)
	session := d.pub.link.current()
	p.inject(10, 60, append([]byte{byte(len("low on memory"))}, "low on memory"...)...)
	for !d.pub.link.blocked() {
		select {
		case <-session.done:
			t.Fatal("the connection ended")
		case <-time.After(time.Millisecond):
		}
	}
	next, o := parkingSource(t, d, topic)
	receive(t, ctx, next, slots)
	if got := fetchIDs(t, ctx, next, o.told(t, ctx, 20)); !slices.Equal(got, wantIDs(0, 20)) {
		t.Errorf("fetched %v", got)
	}
}

// A message that waits keeps its key's order when its owner is cut off again and again.
func TestDelayedThroughCuts(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	direct := openDriver(t, brokerConfig(t))
	const total, keys = 600, 20
	var mu sync.Mutex
	handled := map[string]int{}
	failed := map[string]int{}
	highest := map[string]string{}
	firsts := 0
	cut := make(chan struct{}, 1)
	var all sync.WaitGroup
	all.Add(total)
	r := router.New(bus.New(openDriver(t, c)), "g", router.Policy{Retry: router.Schedule{time.Second, time.Second}})
	r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		// Never as often as the policy tries: the key goes on when a message is poisoned, which may then come again.
		if handled[m.ID] == 0 && failed[m.ID] < 2 && rand.N(20) == 0 {
			failed[m.ID]++
			return errors.New("not now")
		}
		if handled[m.ID]++; handled[m.ID] == 1 {
			if m.ID < highest[m.Key] {
				t.Errorf("key %s: %s first came after %s", m.Key, m.ID, highest[m.Key])
			}
			highest[m.Key] = m.ID
			if firsts++; firsts%(total/5) == 0 {
				select {
				case cut <- struct{}{}:
				default:
				}
			}
			all.Done()
		}
		return nil
	})
	runCtx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(runCtx) }()
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	publish(t, direct, topic, messages(0, total, keys)...)
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	for cuts := 0; ; {
		select {
		case <-done:
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if cuts < 3 {
				t.Errorf("only %d cuts: the test shows little", cuts)
			}
			return
		case <-cut:
			cuts++
			p.cut()
		case <-ctx.Done():
			mu.Lock()
			t.Fatalf("%d of %d", len(handled), total)
		}
	}
}

// A lane that is full takes nothing more, but what is parked there keeps its place.
func TestFullLane(t *testing.T) {
	p := &parking{entries: map[int64]*parkedEntry{}}
	for i := range int64(maxParked) {
		if position, _, err := p.place(bus.Token{Position: i}); err != nil || position == i {
			t.Fatalf("place %d: %d, %v", i, position, err)
		}
	}
	if _, _, err := p.place(bus.Token{Position: 1}); !errors.Is(err, errFull) || !retryable(err) {
		t.Errorf("one more: %v", err)
	}
	if position, revision, err := p.place(bus.Token{Position: p.last, Parked: true}); position != p.last || revision != 2 || err != nil {
		t.Errorf("one that is there: %d, %d, %v", position, revision, err)
	}
}

// The marker of another member that arrives where nothing is parked is given back before the broker ends the channel over
// it.
func TestMarkersAreGivenBack(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 1
	d := openDriver(t, c)
	s, o := parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 1)
	p := s.lanes[0].current.Load().parking()
	if err := p.mark(ctx, "another member's"); err != nil {
		t.Fatal(err)
	}
	held := func() []uint64 {
		for {
			p.mu.Lock()
			tags := slices.Clone(p.held)
			p.mu.Unlock()
			if len(tags) > 0 {
				return tags
			}
			select {
			case <-p.closed:
				t.Fatal("the channel ended:", p.cause)
			case <-ctx.Done():
				t.Fatal("the marker does not come")
			case <-time.After(time.Millisecond):
			}
		}
	}
	first := held()
	p.giveBack()
	if again := held(); len(again) != 1 || again[0] <= first[0] {
		t.Errorf("held as %d, and given back as %d", first, again)
	}
}
