package rabbitmq

import (
	"errors"
	"testing"

	"github.com/millrace-go/millrace/bus"
)

// A lane is taken up again after its deliveries have stopped without a word, whether it holds
// messages or not. A cluster that was divided may have given the lane to another member.
func TestStuckLane(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 1
	d := openDriver(t, c)
	o := newObserver()
	src := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g", InFlight: 5}, o)
	o.waitLanes(t, ctx, 1)
	publish(t, d, topic, message("m000000", ""))
	held := receive(t, ctx, src, 1)
	own := src.(*source).lanes[0].current.Load()
	own.check()
	if !own.check() {
		t.Error("a lane is not probed that holds a message, and has room for more")
	}
	publish(t, d, topic, messages(1, 5, 1)...)
	held = append(held, receive(t, ctx, src, 4)...)
	own.check()
	if own.check() {
		t.Error("a lane is probed to which the broker delivers no more, because it holds all that it may")
	}
	settle(t, src, held)
	if !own.check() {
		t.Error("an idle lane is not probed")
	}
	own.probe()
	publish(t, d, topic, message("m000005", ""))
	settle(t, src, receive(t, ctx, src, 1))
	if own.check() {
		t.Error("a lane that delivers is taken to be stuck")
	}
	if !own.check() {
		t.Error("an idle lane is not probed")
	}
	own.probe() // and nothing arrives
	own.check()
	if own.check() {
		t.Error("a lane is probed that is about to be lost")
	}
	o.wait(t, ctx, "the lane to be lost", func() bool { return len(o.lost) == 1 })
	publish(t, d, topic, message("m000006", ""))
	settle(t, src, receive(t, ctx, src, 1))
	if err := src.Settle(ctx, tokens(held)); !errors.Is(err, bus.ErrStale) {
		t.Error(err)
	}
}

// Acks in any order: after a clean end, exactly the unsettled messages come again.
func TestSettleInAnyOrder(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 2
	d := openDriver(t, c)
	sub := bus.Subscription{Topic: topic, Group: "g", InFlight: 40}
	src := subscribe(t, d, sub, newObserver())
	want := map[string]bool{}
	for round := range 40 {
		publish(t, d, topic, messages(round*10, round*10+10, 10)...)
		for i, m := range receive(t, ctx, src, 10) {
			if i%10 == round%10 && round < 20 {
				want[m.ID] = true // left unsettled, with settled ones before and behind
				continue
			}
			settle(t, src, []bus.Delivery{m})
			settle(t, src, []bus.Delivery{m}) // twice is once
		}
	}
	if lag, err := d.Lag(ctx, topic, "g"); err != nil || lag != 20 {
		t.Errorf("lag %d, %v", lag, err)
	}
	if err := src.Close(ctx); err != nil {
		t.Fatal(err)
	}
	src = subscribe(t, d, sub, newObserver())
	publish(t, d, topic, ends("z")...)
	for waiting := slots; waiting > 0; {
		m := receive(t, ctx, src, 1)
		if m[0].ID[0] == 'z' {
			waiting--
		} else if !want[m[0].ID] {
			t.Errorf("%s came again", m[0].ID)
		}
		delete(want, m[0].ID)
		settle(t, src, m)
	}
	if len(want) > 0 {
		t.Errorf("%d did not come again", len(want))
	}
}

// A clean end loses no ack, however many were sent one by one just before it.
func TestManyAcksThenClose(t *testing.T) {
	for _, queue := range []string{Quorum, Classic} {
		t.Run(queue, func(t *testing.T) {
			ctx := testContext(t)
			topic := newTopic(t, "g")
			c := brokerConfig(t)
			c.Lanes, c.Queue = 1, queue
			d := openDriver(t, c)
			const total = 2000
			sub := bus.Subscription{Topic: topic, Group: "g", InFlight: total}
			src := subscribe(t, d, sub, newObserver())
			publish(t, d, topic, messages(0, total, 10)...)
			got := receive(t, ctx, src, total)
			settle(t, src, got[1:])
			if err := src.Close(ctx); err != nil {
				t.Fatal(err)
			}
			src = subscribe(t, d, sub, newObserver())
			publish(t, d, topic, message("z", ""))
			if again := receive(t, ctx, src, 2); again[0].ID != got[0].ID || again[1].ID != "z" {
				t.Errorf("%s and %s came", again[0].ID, again[1].ID)
			}
		})
	}
}

// Commit asks the queue from which the messages came, and again if its leader has not answered: the
// broker says then that there are neither messages nor consumers.
func TestCommitWaitsForAnAnswer(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 1
	d := openDriver(t, c)
	publish(t, d, topic, messages(0, 20, 4)...)
	src := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g", InFlight: 5}, newObserver())
	group := groupName(topic, "g")
	commit := func(queue string) {
		t.Helper()
		settle(t, src, receive(t, ctx, src, 2))
		p.blind(queue, 2)
		if err := src.(*source).Commit(ctx); err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.answers > 0 {
			t.Errorf("%q was not asked %d times", queue, p.answers)
		}
	}
	commit(earlyName(group, 0))
	for range 18 {
		settle(t, src, receive(t, ctx, src, 1))
	}
	publish(t, d, topic, messages(20, 22, 4)...)
	commit(laneName(group, 0))
}

// Commit asks the parking queue in the same way.
func TestCommitOfParked(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 1
	d := openDriver(t, c)
	s, _ := parkingSource(t, d, topic)
	publish(t, d, topic, messages(0, 1, 1)...)
	ps := parkAll(receive(t, ctx, s, 1))
	if err := s.Park(ctx, ps); err != nil {
		t.Fatal(err)
	}
	if err := s.Settle(ctx, []bus.Token{ps[0].Token}); err != nil {
		t.Fatal(err)
	}
	p.blind(parkedName(groupName(topic, "g"), 0), 2)
	if err := s.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answers > 0 {
		t.Errorf("it was not asked %d times", p.answers)
	}
}
