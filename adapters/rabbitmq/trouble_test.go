package rabbitmq

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// told is the next error of Receive.
func told(t *testing.T, ctx context.Context, s bus.Source) error {
	t.Helper()
	n, err := s.Receive(ctx, make([]bus.Delivery, 1), 1)
	if n > 0 || ctx.Err() != nil {
		t.Fatalf("%d messages, %v", n, err)
	}
	return err
}

// While there is no connection, Receive says so, once, and when there is one again.
func TestReceiveTellsOfOutages(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	o := newObserver()
	s := subscribe(t, openDriver(t, c), bus.Subscription{Topic: topic, Group: "g"}, o)
	o.waitLanes(t, ctx, DefaultLanes)
	begun := time.Now()
	p.Refuse(true)
	if err := told(t, ctx, s); !bus.IsRetryable(err) || !strings.Contains(err.Error(), "no connection") {
		t.Error(err)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := s.Receive(short, make([]bus.Delivery, 1), 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it is told again: %v", err)
	}
	p.Refuse(false)
	if err := told(t, ctx, s); err != nil {
		t.Error(err)
	}
	o.waitLanes(t, ctx, DefaultLanes)
}

// Somebody else has a lane's queue for himself. Subscribe and Receive name the lane and the reason, and it goes on when that is over.
func TestLaneThatCannotBeConsumed(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 2
	d, other := openDriver(t, c), openDriver(t, brokerConfig(t))
	sub := bus.Subscription{Topic: topic, Group: "g", InFlight: 100, Bytes: 1 << 20}
	o := newObserver()
	s := subscribe(t, d, sub, o)
	o.waitLanes(t, ctx, 2)
	p.Refuse(true)
	queue := laneName(groupName(topic, "g"), 1)
	admin(t, other, func(tp *topology) error {
		if err := tp.deleteQueue(queue); err != nil {
			return err
		}
		ch, err := tp.channel()
		if err == nil {
			_, err = ch.QueueDeclare(queue, true, false, true, false, amqp.Table{amqp.QueueTypeArg: Classic})
		}
		return err
	})
	o.waitLanes(t, ctx, 0)
	for range 2 { // the outage may be told of first
		if err := told(t, ctx, s); err != nil && strings.Contains(err.Error(), "lane 1") {
			break
		}
		p.Refuse(false)
	}
	if _, err := d.Subscribe(ctx, sub, newObserver()); err == nil || !strings.Contains(err.Error(), "lane 1") || !strings.Contains(err.Error(), "RESOURCE_LOCKED") {
		t.Error(err)
	}
	admin(t, other, func(tp *topology) error { return tp.deleteQueue(queue) })
	if err := told(t, ctx, s); err != nil {
		t.Error(err)
	}
	o.waitLanes(t, ctx, 2)
}

// A lane's queue does not confirm. Nobody registers with it, because the server would end the connection if it had no majority; Receive
// says which it is. The other lanes are consumed.
func TestLaneThatDoesNotConfirm(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 3
	p.mute(laneName(groupName(topic, "g"), 0))
	d := openDriver(t, c)
	o := newObserver()
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o)
	o.waitLanes(t, ctx, 2)
	if err := told(t, ctx, s); !strings.Contains(err.Error(), "lane 0") || !errors.Is(err, errSilent) {
		t.Error(err)
	}
	admin(t, openDriver(t, brokerConfig(t)), func(tp *topology) error {
		q, _, err := tp.queue(laneName(groupName(topic, "g"), 0))
		if q.Consumers > 0 {
			t.Error("somebody registered with it")
		}
		return err
	})
	session := d.pub.link.current()
	p.mute("nothing at all")
	_ = session.conn.CloseDeadline(time.Now().Add(time.Second)) // what was not confirmed is given up
	o.waitLanes(t, ctx, 3)
}

// The queue of what a lane has parked does not confirm. Nobody registers with it either, and the lane waits; the other lanes are consumed.
func TestParkingQueueThatDoesNotConfirm(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 3
	queue := parkedName(groupName(topic, "g"), 0)
	p.mute(queue)
	d := openDriver(t, c)
	s, o := parkingSource(t, d, topic)
	if err := told(t, ctx, s); err == nil || !strings.Contains(err.Error(), "lane 0") || !errors.Is(err, errSilent) {
		t.Fatal(err)
	}
	o.waitLanes(t, ctx, 2)
	admin(t, openDriver(t, brokerConfig(t)), func(tp *topology) error {
		q, _, err := tp.queue(queue)
		if q.Consumers > 0 {
			t.Error("somebody registered with it")
		}
		return err
	})
	session := d.pub.link.current()
	p.mute("nothing at all")
	_ = session.conn.CloseDeadline(time.Now().Add(time.Second)) // what was not confirmed is given up
	o.waitLanes(t, ctx, 3)
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.lost) > 0 {
		t.Errorf("lanes %v were lost", o.lost)
	}
}

// A lane's early queue has no leader that answers. Nobody registers with it until it has.
func TestEarlyQueueThatDoesNotAnswer(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 2
	direct := openDriver(t, c)
	publish(t, openDriver(t, brokerConfig(t)), topic, messages(0, 20, 4)...)
	p.blind(earlyName(groupName(topic, "g"), 0), 1_000_000)
	s := subscribe(t, direct, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	got, silent := receive(t, ctx, s, 1), false // of the other lane
	for len(got) < 20 {
		dst := make([]bus.Delivery, 20)
		n, err := s.Receive(ctx, dst, 1<<20)
		got = append(got, dst[:n]...)
		if err != nil {
			if !strings.Contains(err.Error(), "lane 0") || !errors.Is(err, errSilent) {
				t.Fatal(err)
			}
			silent = true
			p.blind("", 0)
		}
	}
	if !silent {
		t.Error("somebody registered with it")
	}
	checkOrder(t, got, 0, 20)
	settle(t, s, got)
}

// The members cannot be counted, because the node with their queue is down. Each consumes what comes to it.
func TestMembersCannotBeCounted(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	other := openDriver(t, c)
	name := membersName(groupName(topic, "g"))
	admin(t, other, func(tp *topology) error {
		ch, err := tp.channel()
		if err == nil { // nobody else can declare it, or consume from it
			_, err = ch.QueueDeclare(name, true, false, true, false, nil)
		}
		return err
	})
	d := openDriver(t, c)
	o := newObserver()
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o)
	o.waitLanes(t, ctx, DefaultLanes)
	publish(t, d, topic, messages(0, 20, 10)...)
	settle(t, s, receive(t, ctx, s, 20))
	admin(t, other, func(tp *topology) error { return tp.deleteQueue(name) })
	o2 := newObserver()
	subscribe(t, openDriver(t, c), bus.Subscription{Topic: topic, Group: "g"}, o2)
	o.waitLanes(t, ctx, DefaultLanes/2)
	o2.waitLanes(t, ctx, DefaultLanes/2)
}

// What arrived of lanes that are gone is dropped, though nobody calls Receive.
func TestArrivalsOfLostLanesAreDropped(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 2
	d := openDriver(t, c)
	o := newObserver()
	source := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o).(*source)
	o.waitLanes(t, ctx, 2)
	publish(t, d, topic, messages(0, 100, 20)...)
	waiting := func() int {
		source.mu.Lock()
		defer source.mu.Unlock()
		return len(source.ready) - source.head
	}
	for round := range 3 {
		for waiting() < 100 && ctx.Err() == nil {
			pause(ctx, time.Millisecond)
		}
		if n := waiting(); n != 100 {
			t.Fatalf("round %d: %d wait", round, n)
		}
		_ = d.consume.current().conn.CloseDeadline(time.Now().Add(time.Second))
		o.waitLanes(t, ctx, 0)
		o.waitLanes(t, ctx, 2)
	}
}
