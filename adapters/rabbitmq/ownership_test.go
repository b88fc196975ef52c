package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
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
	if lag, err := d.Lag(ctx, topic, "g"); err != nil || lag.Messages != 20 {
		t.Errorf("lag %+v, %v", lag, err)
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

// Commit waits for the record of a settled message that is on its way, and removes it. If the lane
// ends first, Commit says that it does not know.
func TestCommitOfParkedOnItsWay(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("lost %v", lost), func(t *testing.T) {
			ctx := testContext(t)
			p, c := newProxy(t)
			topic, c := oneLane(t, c)
			d := openDriver(t, c)
			s, o := parkingSource(t, d, topic)
			at := parkOne(t, ctx, d, s, topic, messages(0, 1, 1)[0])
			fetchIDs(t, ctx, s, []driver.Parked{{Token: at.Token}}) // it is here
			probed(t, ctx, s)
			if err := s.Commit(ctx); err != nil { // from here on the lane itself has nothing to ask
				t.Fatal(err)
			}
			parking, queue := s.lanes[0].current.Load().parking(), parkedName(groupName(topic, "g"), 0)
			p.hold(consumes)
			before := p.deliveries(queue)
			parking.refresh(time.Now().Add(parking.bounds.refresh))
			p.wait(t, ctx, "the record", func() bool { return p.given[queue] == before+1 })
			if err := s.Settle(ctx, []bus.Token{at.Token}); err != nil {
				t.Fatal(err)
			}
			soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			if err := s.Commit(soon); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("commit while the record is on its way: %v", err)
			}
			if lost {
				p.Refuse(true)
				o.waitLanes(t, ctx, 0)
				if err := parking.commitNow(ctx); !errors.Is(err, bus.ErrStale) {
					t.Errorf("commit after the lane's end: %v", err)
				}
				return
			}
			p.release(t, d)
			if err := s.Commit(ctx); err != nil {
				t.Error(err)
			}
			p.Refuse(true) // the record is removed, whatever happens
			next, o := parkingSource(t, openDriver(t, brokerConfig(t)), topic)
			o.waitLanes(t, ctx, 1)
			fetchIDs(t, ctx, next, o.told(t, ctx, 0))
		})
	}
}

// A clean end loses no ack of parked messages, however many were sent one by one just before it. It
// asks the queue behind the acks: the broker may otherwise forget them, and does so now and then.
func TestManyParkedAcksThenClose(t *testing.T) {
	for _, queue := range []string{Quorum, Classic} {
		t.Run(queue, func(t *testing.T) {
			ctx := testContext(t)
			p, c := newProxy(t)
			topic, c := oneLane(t, c)
			c.Queue = queue
			d := openDriver(t, c)
			const total = 2000
			s, o := parkingSource(t, d, topic)
			o.waitLanes(t, ctx, 1)
			injectAll(t, d, topic, messages(0, total, 10)...)
			var ts []bus.Token
			for _, p := range o.told(t, ctx, total) {
				ts = append(ts, p.Token)
			}
			p.count()
			if err := s.Settle(ctx, ts[1:]); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(ctx); err != nil {
				t.Fatal(err)
			}
			if n := p.count()[basicConsume]; n != 4 {
				t.Errorf("the lane's queues were asked %d times, want twice each", n)
			}
			nextOwner(t, ctx, s, d, topic, wantIDs(0, 1))
		})
	}
}
