package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/faults"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// parkingObserver records the news of parked messages, too.
type parkingObserver struct {
	*observer
	assigned map[bus.Lane]bool
	parked   []driver.Parked
}

func (o *parkingObserver) Assigned(lanes []bus.Lane) {
	o.observer.Assigned(lanes)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range lanes {
		o.assigned[l] = true
	}
}

func (o *parkingObserver) Parked(ps []driver.Parked) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range ps {
		if !o.assigned[bus.Lane{ID: p.Lane, Epoch: p.Epoch}] {
			o.faults = append(o.faults, fmt.Sprintf("told of what is parked in lane %d, which was not assigned", p.Lane))
		}
	}
	o.parked = append(o.parked, ps...)
	o.note()
}

func (o *parkingObserver) told(t testing.TB, ctx context.Context, n int) []driver.Parked {
	t.Helper()
	o.wait(t, ctx, fmt.Sprintf("%d parked messages", n), func() bool { return len(o.parked) >= n })
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.parked) > n {
		t.Errorf("told of %d parked messages, want %d", len(o.parked), n)
	}
	return slices.Clone(o.parked)
}

func parkingSource(t testing.TB, d *busDriver, topic string) (*source, *parkingObserver) {
	t.Helper()
	o := &parkingObserver{observer: newObserver(), assigned: map[bus.Lane]bool{}}
	t.Cleanup(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, f := range o.faults {
			t.Error(f)
		}
	})
	return subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o).(*source), o
}

func parkAll(ds []bus.Delivery) []driver.Parking {
	ps := make([]driver.Parking, len(ds))
	for i := range ds {
		ps[i] = driver.Parking{Delivery: ds[i], Due: time.Now().Add(time.Hour)}
	}
	return ps
}

// fetchIDs fetches all that is parked, and returns the sorted ids.
func fetchIDs(t testing.TB, ctx context.Context, s *source, ps []driver.Parked) (ids []string) {
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

// Ten thousand parked messages go to the next owner, and it learns of all and can fetch each.
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
			// Messages that are given back, so that the broker does not tire of waiting, are still
			// there.
			for _, l := range next.lanes {
				refreshAll(t, ctx, l.current.Load().parking())
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

// An owner that was cut off while it parked has lost nothing: each message is parked, or comes
// again.
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
			p.Cut()
			o.waitLanes(t, ctx, 0)
			o.waitLanes(t, ctx, DefaultLanes)
		}
	}()
	dst := make([]bus.Delivery, 64)
	parked := map[string]bool{}
	for len(parked) < total {
		n, err := receiveSome(ctx, s, dst)
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

// A message may have been parked or not, without anybody's knowledge. When parking is tried again,
// it goes to the same position.
func TestParkOfUnknownFate(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	direct := openDriver(t, brokerConfig(t))
	s, _ := parkingSource(t, openDriver(t, c), topic)
	publish(t, direct, topic, messages(0, 1, 1)...)
	ps := parkAll(receive(t, ctx, s, 1))
	p.Stall(faults.ToServer, true)
	soon, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	err := s.Park(soon, ps)
	cancel()
	if pe, ok := errors.AsType[*bus.PublishError](err); !ok || bus.IsDefinite(pe.Errs[0]) || !bus.IsRetryable(pe.Errs[0]) || ps[0].Token.Parked {
		t.Fatalf("park: %v, %v", err, ps[0].Token)
	}
	p.Stall(faults.ToServer, false)
	if err := s.Park(ctx, ps); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	next, o := parkingSource(t, direct, topic)
	o.waitLanes(t, ctx, DefaultLanes)
	told := o.told(t, ctx, 1)
	if told[0].Position != ps[0].Position {
		t.Errorf("parked at %d, and told of %d", ps[0].Position, told[0].Position)
	}
	if err := next.Settle(ctx, []bus.Token{told[0].Token}); err != nil {
		t.Fatal(err)
	}
	if err := next.Close(ctx); err != nil {
		t.Fatal(err)
	}
	_, o = parkingSource(t, direct, topic)
	o.waitLanes(t, ctx, DefaultLanes)
	o.told(t, ctx, 0)
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
	p.block(t, d.pub.link.Current(), "low on memory")
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
	log := testlog.New(t, "handler failed; the message is tried again", "receiving failed", "parking failed", "fetching parked messages failed",
		"messages could not be parked; they come again", "handled messages could not be settled; they come again")
	r := router.New(bus.New(openDriver(t, c)), "g", router.Logger(log), router.Policy{Retry: router.Schedule{time.Second, time.Second}})
	r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		// It never fails as often as the policy tries: the key goes on when a message is poisoned,
		// which may then come again.
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
			p.Cut()
		case <-ctx.Done():
			mu.Lock()
			t.Fatalf("%d of %d", len(handled), total)
		}
	}
}

// A full lane takes nothing more, and keeps nobody else's messages from being parked. A message
// that is parked there keeps its place.
func TestFullLane(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 2
	d := openDriver(t, c)
	s, o := parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 2)
	publish(t, d, topic, messages(0, 8, 8)...)
	ps := parkAll(receive(t, ctx, s, 8))
	full := ps[0].Lane
	there := slices.IndexFunc(ps[1:], func(p driver.Parking) bool { return p.Lane == full }) + 1
	if there == 0 || !slices.ContainsFunc(ps, func(p driver.Parking) bool { return p.Lane != full }) {
		t.Fatal("the test's keys are all in one lane, or none is with the first")
	}
	if err := s.Park(ctx, ps[there:there+1]); err != nil {
		t.Fatal(err)
	}
	p := s.lanes[full].current.Load().parking()
	p.mu.Lock()
	p.bounds.room = 1
	p.mu.Unlock()
	err := s.Park(ctx, ps)
	pe, ok := errors.AsType[*bus.PublishError](err)
	if !ok {
		t.Fatalf("park: %v", err)
	}
	for i := range ps {
		refused := ps[i].Lane == full && i != there
		if got := errors.Is(pe.Errs[i], errFull); got != refused || refused != bus.IsRetryable(pe.Errs[i]) || refused == ps[i].Token.Parked {
			t.Errorf("message %d of lane %d: %v, parked %v", i, ps[i].Lane, pe.Errs[i], ps[i].Token.Parked)
		}
	}
}

// A record in the parking queue that is not understood stays there. It is given back often, so that
// the broker does not end the channel over it. The marker of another member goes.
func TestStrangersStay(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 1
	d := openDriver(t, c)
	limitQueue(t, d, parkedName(groupName(topic, "g"), 0), 5)
	s, o := parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 1)
	p := s.lanes[0].current.Load().parking()
	for _, kind := range []string{parkMarker, "of a later version"} {
		if err := p.mark(ctx, kind, "another's"); err != nil {
			t.Fatal(err)
		}
	}
	held := func(n int, since time.Time) {
		for {
			p.mu.Lock()
			fresh := 0
			for _, s := range p.strangers {
				if s.since.After(since) {
					fresh++
				}
			}
			there := fresh == n && len(p.strangers) == n && !slices.ContainsFunc(slices.Collect(maps.Values(p.strangers)), func(s stranger) bool { return s.copying })
			p.mu.Unlock()
			if there {
				return
			}
			select {
			case <-p.closed:
				t.Fatal("the channel ended:", p.cause)
			case <-ctx.Done():
				t.Fatalf("there are %d of %d", fresh, n)
			case <-time.After(time.Millisecond):
			}
		}
	}
	held(2, time.Time{})
	for range 3 * maxReturns { // often enough to be dropped, were it not copied
		since := time.Now()
		p.refresh(since.Add(time.Hour))
		held(1, since)
	}
}

// refreshAll has all that is parked delivered again.
func refreshAll(t testing.TB, ctx context.Context, p *parking) {
	t.Helper()
	since := time.Now()
	for {
		p.refresh(since.Add(p.bounds.refresh))
		p.mu.Lock()
		if p.renewing > refreshBatch {
			t.Fatalf("%d records were given back at once", p.renewing)
		}
		old := 0
		for _, e := range p.entries {
			if e.tag == 0 || !e.since.After(since) || e.copying || e.coming > 0 {
				old++
			}
		}
		p.mu.Unlock()
		if old == 0 {
			return
		}
		select {
		case <-p.closed:
			t.Fatal("the channel ended:", p.cause)
		case <-ctx.Done():
			t.Fatalf("%d messages do not come again", old)
		case <-time.After(time.Millisecond):
		}
	}
}
