package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// A group has the number of lanes that it was created with, whatever its members are configured to.
func TestLanesAreTheGroups(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "three", "one")
	c := brokerConfig(t)
	c.Lanes = 3
	three := openDriver(t, c)
	c.Lanes, c.Queue = 8, Classic
	eight := openDriver(t, c)
	c.Lanes = 1
	one := openDriver(t, c)

	o := newObserver()
	s := subscribe(t, three, bus.Subscription{Topic: topic, Group: "three"}, o)
	o.waitLanes(t, ctx, 3)
	// A member with another number and queue type joins: it takes part in the lanes that there are.
	o2 := newObserver()
	s2 := subscribe(t, eight, bus.Subscription{Topic: topic, Group: "three"}, o2)
	o.wait(t, ctx, "a lane to be handed over", func() bool { return len(o.owned) == 2 })
	o2.waitLanes(t, ctx, 1)
	s1 := subscribe(t, one, bus.Subscription{Topic: topic, Group: "one"}, newObserver())
	publish(t, eight, topic, messages(0, 300, 60)...)
	all := receive(t, ctx, s1, 300)
	checkOrder(t, all, 0, 300)
	var got []bus.Delivery
	for _, src := range []bus.Source{s, s2} {
		c, cancel := context.WithCancel(ctx)
		dst := make([]bus.Delivery, 300)
		for len(got) < 300 {
			n, err := src.Receive(c, dst, 1<<20)
			if err != nil {
				break
			}
			got = append(got, dst[:n]...)
			settle(t, src, dst[:n])
			if lag, err := eight.Lag(ctx, topic, "three"); err != nil || lag.Messages+int64(len(got)) > 300 {
				t.Errorf("lag %+v with %d settled: %v", lag, len(got), err)
			}
			// Lanes come in any order among each other.
			if src == s && slices.ContainsFunc(got, func(d bus.Delivery) bool { return d.ID >= "m000290" }) {
				break
			}
		}
		cancel()
		if src == s { // the rest goes to the other
			if err := s.Close(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	checkOrder(t, got, 0, 300)
}

// Names that would meet if they were joined by a dot, and names of the greatest length.
func TestNames(t *testing.T) {
	ctx := testContext(t)
	base := newName(t, "n")
	long := strings.Repeat("t", 200-len(base)) + base
	d := openDriver(t, brokerConfig(t))
	type pair struct{ topic, group string }
	pairs := []pair{
		{base, "b.c"},
		{base + ".b", "c"},
		{base + ".unrouted", "members"},
		{base, "0"},
		{base, "unrouted"},
		{long, strings.Repeat("g", 200)},
		{long, strings.Repeat("g", 199) + "h"},
	}
	groups := map[string][]string{}
	sources := map[pair]bus.Source{}
	for _, p := range pairs {
		groups[p.topic] = append(groups[p.topic], p.group)
	}
	t.Cleanup(func() {
		for topic, gs := range groups {
			deleteTopic(t, brokerConfig(t), topic, gs)
		}
	})
	for _, p := range pairs {
		sources[p] = subscribe(t, d, bus.Subscription{Topic: p.topic, Group: p.group}, newObserver())
	}
	for topic := range groups {
		publish(t, d, topic, message(topic, "k"))
	}
	for _, p := range pairs {
		got := receive(t, ctx, sources[p], 1)
		if got[0].ID != p.topic {
			t.Errorf("%v got what is of %s", p, got[0].ID)
		}
		settle(t, sources[p], got)
		if lag, err := d.Lag(ctx, p.topic, p.group); err != nil || lag.Messages != 0 {
			t.Errorf("%v: lag %+v, %v", p, lag, err)
		}
	}
	if _, err := d.Lag(ctx, base, "nobody"); !errors.Is(err, bus.ErrNotFound) {
		t.Error(err)
	}
}

func TestStart(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "latest", "earliest", "late")
	d := openDriver(t, brokerConfig(t))
	for _, start := range []bus.Start{bus.StartAt(time.Now()), bus.StartAt(time.Time{})} {
		_, err := d.Subscribe(ctx, bus.Subscription{Topic: topic, Group: "at", Start: start, InFlight: 1, Bytes: 1}, newObserver())
		if !errors.Is(err, bus.ErrUnsupported) || bus.IsRetryable(err) {
			t.Error(err)
		}
	}
	publish(t, d, topic, messages(0, 100, 10)...)
	latest := subscribe(t, d, bus.Subscription{Topic: topic, Group: "latest", Start: bus.Latest}, newObserver())
	publish(t, d, topic, messages(100, 200, 10)...)
	got := receive(t, ctx, latest, 100)
	checkOrder(t, got, 100, 200)
	settle(t, latest, got)
	// The kept messages are still there, for the first group that wants them. They end where the
	// latest group begins.
	earliest := subscribe(t, d, bus.Subscription{Topic: topic, Group: "earliest"}, newObserver())
	late := subscribe(t, d, bus.Subscription{Topic: topic, Group: "late"}, newObserver())
	publish(t, d, topic, messages(200, 300, 10)...)
	var ids []string
	for _, m := range receive(t, ctx, earliest, 200) {
		ids = append(ids, m.ID)
		if m.ID >= "m000100" && m.ID < "m000200" {
			t.Errorf("%s was published when another group had begun", m.ID)
		}
	}
	if len(ids) != 200 {
		t.Error(len(ids))
	}
	checkOrder(t, receive(t, ctx, late, 100), 200, 300)
	checkOrder(t, receive(t, ctx, latest, 100), 200, 300)
}

// The first group comes while many publish, and while its connection breaks. It gets everything,
// each key in order.
func TestUnroutedUnderLoad(t *testing.T) {
	for _, cuts := range []int{0, 3} {
		t.Run(fmt.Sprintf("%d cuts", cuts), func(t *testing.T) {
			ctx := testContext(t)
			topic := newTopic(t, "g")
			pub := openDriver(t, brokerConfig(t))
			const publishers, each = 4, 1500
			var done sync.WaitGroup
			defer done.Wait()
			begun := make(chan struct{}, publishers*each)
			for w := range publishers {
				done.Go(func() {
					for i := range each {
						publish(t, pub, topic, message(fmt.Sprintf("w%d-%06d", w, i), fmt.Sprintf("w%d-%d", w, i%10)))
						begun <- struct{}{}
					}
				})
			}
			for range 1500 {
				<-begun
			}
			p, c := newProxy(t)
			d := openDriver(t, c)
			var s bus.Source
			for n := 0; s == nil; n++ {
				if n < cuts {
					go func() {
						for range 20 + 100*n {
							<-begun
						}
						p.Cut()
					}()
				}
				var err error
				sub := bus.Subscription{Topic: topic, Group: "g", InFlight: 500, Bytes: 1 << 30}
				if s, err = d.Subscribe(ctx, sub, newObserver()); err != nil && n > 10 {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() { s.Close(context.Background()) })
			seen := map[string]int{}
			highest := map[string]string{}
			dst := make([]bus.Delivery, 100)
			for len(seen) < publishers*each {
				n, err := receiveSome(ctx, s, dst)
				if err != nil {
					t.Fatalf("%d of %d: %v", len(seen), publishers*each, err)
				}
				for _, m := range dst[:n] {
					if seen[m.ID]++; seen[m.ID] > 1 {
						continue
					}
					if m.ID < highest[m.Key] {
						t.Errorf("key %s: %s after %s", m.Key, m.ID, highest[m.Key])
					}
					highest[m.Key] = m.ID
				}
				if err := s.Settle(ctx, tokens(dst[:n])); err != nil && !errors.Is(err, bus.ErrStale) {
					t.Fatal(err)
				}
			}
			if repeats := repeats(seen); cuts == 0 && repeats > 0 {
				t.Errorf("%d repeats", repeats)
			}
		})
	}
}

func repeats(seen map[string]int) (n int) {
	for _, times := range seen {
		n += times - 1
	}
	return n
}

// The early queues change hands while they are consumed, and are gone when they are done.
func TestEarlyQueuesChangeHands(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	publish(t, d, topic, messages(0, 1000, 40)...)
	l := newLedger()
	sub := bus.Subscription{Topic: topic, Group: "g", InFlight: 16}
	first := newObserver()
	s := subscribe(t, d, sub, first)
	publish(t, d, topic, messages(1000, 2000, 40)...)
	for range 200 {
		m := receive(t, ctx, s, 1)
		l.note("first", m[0].Message)
		settle(t, s, m)
	}
	a := join(t, d, sub, "a", l)
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	l.wait(t, ctx, 600)
	join(t, d, sub, "b", l)
	a.leave(t, ctx)
	l.wait(t, ctx, 2000)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.faults {
		t.Error(f)
	}
	if len(l.seen) != 2000 {
		t.Error(len(l.seen))
	}
	admin(t, d, func(tp *topology) error {
		left := 0
		for i := range DefaultLanes {
			q, ok, err := tp.queue(earlyName(groupName(topic, "g"), i))
			if err != nil {
				return err
			}
			if ok {
				left++
				if q.Messages > 0 {
					t.Errorf("early queue %d has %d messages", i, q.Messages)
				}
			}
		}
		t.Log(left, "early queues left")
		return nil
	})
}

// The early queue stays until all its messages are settled, though the lane is past its end:
// unsettled messages come again.
func TestEarlyQueueWaitsForItsMessages(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 1
	d := openDriver(t, c)
	publish(t, d, topic, messages(0, 10, 10)...)
	sub := bus.Subscription{Topic: topic, Group: "g"}
	s := subscribe(t, d, sub, newObserver())
	receive(t, ctx, s, 10)
	for i := 10; i < 60; i++ { // from the lane's queue, one by one: there is time to delete the early one
		publish(t, d, topic, messages(i, i+1, 10)...)
		receive(t, ctx, s, 1)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	again := subscribe(t, openDriver(t, c), sub, newObserver())
	all := receive(t, ctx, again, 60)
	checkOrder(t, all, 0, 60)
	settle(t, again, all)
}

// The early queue goes, and the lane is not disturbed. While the broker cancels a consumer of a
// channel, it delivers nothing on that channel.
func TestEarlyQueueGoesQuietly(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 1
	direct := openDriver(t, brokerConfig(t))
	publish(t, direct, topic, messages(0, 10, 10)...)
	s := subscribe(t, openDriver(t, c), bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	settle(t, s, receive(t, ctx, s, 10))
	admin(t, direct, func(tp *topology) error {
		for ctx.Err() == nil {
			if _, ok, err := tp.queue(earlyName(groupName(topic, "g"), 0)); !ok {
				return err
			}
		}
		return ctx.Err()
	})
	publish(t, direct, topic, messages(10, 11, 10)...)
	settle(t, s, receive(t, ctx, s, 1)) // behind the broker's news of the deletion
	if n := p.cancelled(); n > 0 {
		t.Errorf("the broker cancelled %d consumers", n)
	}
}

// A group that took over the kept messages leaves, and does not disturb the others of its
// connection.
func TestLeavesQuietly(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g", "h")
	d := openDriver(t, brokerConfig(t))
	publish(t, d, topic, messages(0, 100, 40)...)
	og, oh := newObserver(), newObserver()
	g := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, og)
	settle(t, g, receive(t, ctx, g, 100))
	h := subscribe(t, d, bus.Subscription{Topic: topic, Group: "h"}, oh)
	oh.waitLanes(t, ctx, DefaultLanes)
	publish(t, d, topic, messages(100, 200, 40)...)
	settle(t, g, receive(t, ctx, g, 100))
	held := receive(t, ctx, h, 100)
	if err := g.Close(ctx); err != nil {
		t.Fatal(err)
	}
	settle(t, h, held) // stale, if the connection had ended
	if len(oh.lost) > 0 {
		t.Errorf("lanes were lost: %v", oh.lost)
	}
}

// Two members of a new group come at once, and another group.
func TestGroupsComeAtOnce(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g", "h")
	pub := openDriver(t, brokerConfig(t))
	publish(t, pub, topic, messages(0, 500, 10)...)
	var joins sync.WaitGroup
	ledgers := map[string]*ledger{"g": newLedger(), "h": newLedger()}
	for i := range 4 {
		group := []string{"g", "h"}[i%2]
		d := openDriver(t, brokerConfig(t))
		joins.Go(func() {
			join(t, d, bus.Subscription{Topic: topic, Group: group}, fmt.Sprint(group, i), ledgers[group])
		})
	}
	joins.Wait()
	publish(t, pub, topic, messages(500, 1000, 10)...)
	// One group got the kept messages, and both groups got the later ones.
	for _, l := range ledgers {
		l.wait(t, ctx, 500)
	}
	var got []int
	for _, l := range ledgers {
		l.mu.Lock()
		n := len(l.seen)
		kept := l.seen["m000000"]
		l.mu.Unlock()
		if kept > 0 {
			l.wait(t, ctx, 1000)
		}
		got = append(got, n, kept)
		for _, f := range l.faults {
			t.Error(f)
		}
	}
	if got[1]+got[3] > 1 {
		t.Errorf("both groups got what was kept: %v", got)
	}
}

// The names of topic and group are so long that the broker's refusal does not quote the number of
// lanes.
func TestLanesOfLongNames(t *testing.T) {
	ctx := testContext(t)
	const group = "billing-service-in-production-of-the-second-region"
	topic := newTopic(t, group, "g")
	c := brokerConfig(t)
	c.Lanes = 11
	eleven := openDriver(t, c)
	c.Lanes = 8
	eight := openDriver(t, c)
	sub := bus.Subscription{Topic: topic, Group: group}
	s := subscribe(t, eleven, sub, newObserver())
	publish(t, eight, topic, messages(0, 20, 20)...)
	held := receive(t, ctx, s, 20)
	o := newObserver()
	subscribe(t, eight, sub, o)
	o.waitLanes(t, ctx, 5)
	for range 2 {
		if lag, err := eight.Lag(ctx, topic, group); err != nil || lag.Messages < 0 {
			t.Errorf("lag %+v, %v", lag, err)
		}
	}
	if err := eight.Inject(ctx, topic, group, []driver.Parking{{Delivery: held[0]}}); err != nil {
		t.Error(err)
	}
	if err := eight.Inject(ctx, topic, "nobody", nil); !errors.Is(err, bus.ErrNotFound) {
		t.Error(err)
	}
}
