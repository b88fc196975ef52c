package rabbitmq

import (
	"errors"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/faults"
)

// While there is no connection, the observer is told why, and when there is one again, although
// nobody calls Receive.
func TestObserverIsToldOfOutages(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	o := newObserver()
	subscribe(t, openDriver(t, c), bus.Subscription{Topic: topic, Group: "g"}, o)
	o.waitLanes(t, ctx, DefaultLanes)
	begun := time.Now()
	p.Refuse(true)
	if err := o.toldOf(t, ctx, driver.Disconnected); !bus.IsRetryable(err) {
		t.Error(err)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	p.Refuse(false)
	o.waitWell(t, ctx)
	o.waitLanes(t, ctx, DefaultLanes)
}

// Somebody else has a lane's queue for himself. Subscribe and the observer name the lane and the reason.
// The lane goes on when the queue is free again.
func TestLaneThatCannotBeConsumed(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 2
	d, other := openDriver(t, c), openDriver(t, brokerConfig(t))
	sub := bus.Subscription{Topic: topic, Group: "g", InFlight: 100, Bytes: 1 << 20}
	o := newObserver()
	subscribe(t, d, sub, o)
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
	p.Refuse(false)
	if err := o.toldOf(t, ctx, "lane 1"); !strings.Contains(err.Error(), "RESOURCE_LOCKED") {
		t.Error(err)
	}
	if _, err := d.Subscribe(ctx, sub, newObserver()); err == nil || !strings.Contains(err.Error(), "lane 1") || !strings.Contains(err.Error(), "RESOURCE_LOCKED") {
		t.Error(err)
	}
	admin(t, other, func(tp *topology) error { return tp.deleteQueue(queue) })
	o.waitWell(t, ctx)
	o.waitLanes(t, ctx, 2)
}

// A lane's queue does not confirm. Nobody registers with it, because the server would end the
// connection if the queue had no majority. The observer is told which lane it is. The other lanes are
// consumed.
func TestLaneThatDoesNotConfirm(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 3
	p.mute(laneName(groupName(topic, "g"), 0))
	d := openDriver(t, c)
	o := newObserver()
	subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o)
	o.waitLanes(t, ctx, 2)
	if err := o.toldOf(t, ctx, "lane 0"); !errors.Is(err, errSilent) {
		t.Error(err)
	}
	admin(t, openDriver(t, brokerConfig(t)), func(tp *topology) error {
		q, _, err := tp.queue(laneName(groupName(topic, "g"), 0))
		if q.Consumers > 0 {
			t.Error("somebody registered with it")
		}
		return err
	})
	session := d.pub.link.Current()
	p.mute("nothing at all")
	_ = session.Conn.CloseDeadline(time.Now().Add(time.Second)) // gives up unconfirmed messages
	o.waitLanes(t, ctx, 3)
}

// A lane's parking queue does not confirm. Nobody registers with it either, and the lane waits; the
// other lanes are consumed.
func TestParkingQueueThatDoesNotConfirm(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 3
	queue := parkedName(groupName(topic, "g"), 0)
	p.mute(queue)
	d := openDriver(t, c)
	_, o := parkingSource(t, d, topic)
	if err := o.toldOf(t, ctx, "lane 0"); !errors.Is(err, errSilent) {
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
	session := d.pub.link.Current()
	p.mute("nothing at all")
	_ = session.Conn.CloseDeadline(time.Now().Add(time.Second)) // gives up unconfirmed messages
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
	o := newObserver()
	s := subscribe(t, direct, bus.Subscription{Topic: topic, Group: "g"}, o)
	if err := o.toldOf(t, ctx, "lane 0"); !errors.Is(err, errSilent) {
		t.Error(err)
	}
	p.blind("", 0)
	got := receive(t, ctx, s, 20)
	checkOrder(t, got, 0, 20)
	settle(t, s, got)
}

// The members cannot be counted, because the node with their queue is down. Each consumes the
// messages that come to it, and says so.
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
	if err := o.toldOf(t, ctx, "counted"); !bus.IsRetryable(err) {
		t.Error(err)
	}
	admin(t, other, func(tp *topology) error { return tp.deleteQueue(name) })
	o.waitWell(t, ctx)
	o2 := newObserver()
	subscribe(t, openDriver(t, c), bus.Subscription{Topic: topic, Group: "g"}, o2)
	o.waitLanes(t, ctx, DefaultLanes/2)
	o2.waitLanes(t, ctx, DefaultLanes/2)
}

// The queue of a topic's kept messages cannot be read. The observer is told: messages may wait there for
// ever.
func TestKeptThatCannotBeMoved(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	other := openDriver(t, c)
	o := newObserver()
	subscribe(t, openDriver(t, c), bus.Subscription{Topic: topic, Group: "g"}, o)
	o.waitLanes(t, ctx, DefaultLanes)
	admin(t, other, func(tp *topology) error {
		if err := tp.deleteQueue(unroutedName(topic)); err != nil {
			return err
		}
		ch, err := tp.channel()
		if err == nil { // nobody else can look into it
			_, err = ch.QueueDeclare(unroutedName(topic), true, false, true, false, nil)
		}
		return err
	})
	if err := o.toldOf(t, ctx, "kept"); !strings.Contains(err.Error(), "RESOURCE_LOCKED") {
		t.Error(err)
	}
	admin(t, other, func(tp *topology) error { return tp.deleteQueue(unroutedName(topic)) })
	o.waitWell(t, ctx)
}

// Somebody deletes a group, and it is made again with another number of lanes while its members
// run. They take no lane that the group does not have, and say why.
func TestGroupMadeAgainWithOtherLanes(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 4
	sub := bus.Subscription{Topic: topic, Group: "g"}
	o := newObserver()
	s := subscribe(t, openDriver(t, c), sub, o)
	o.waitLanes(t, ctx, 4)
	p.Stall(faults.ToServer, true)
	deleteTopic(t, brokerConfig(t), topic, []string{"g"})
	c = brokerConfig(t)
	c.Lanes = 3
	direct := openDriver(t, c)
	next := subscribe(t, direct, sub, newObserver())
	p.Stall(faults.ToServer, false)
	if err := o.toldOf(t, ctx, "3 lanes instead of 4"); !errors.Is(err, bus.ErrInvalid) {
		t.Error(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	publish(t, direct, topic, messages(0, 100, 100)...)
	got := receive(t, ctx, next, 100)
	checkOrder(t, got, 0, 100)
	settle(t, next, got)
	if lag, err := direct.Lag(ctx, topic, "g"); err != nil || lag.Messages != 0 {
		t.Errorf("lag %v, %v", lag, err)
	}
	admin(t, direct, func(tp *topology) error {
		if _, ok, err := tp.queue(laneName(groupName(topic, "g"), 3)); ok || err != nil {
			t.Errorf("there is a lane 3: %v", err)
		}
		return nil
	})
}

// Deliveries of lanes that are gone are dropped, though nobody calls Receive.
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
		return source.ready.Len()
	}
	for round := range 3 {
		for waiting() < 100 && ctx.Err() == nil {
			backoff.Sleep(ctx, time.Millisecond)
		}
		if n := waiting(); n != 100 {
			t.Fatalf("round %d: %d wait", round, n)
		}
		_ = d.consume.Current().Conn.CloseDeadline(time.Now().Add(time.Second))
		o.waitLanes(t, ctx, 0)
		o.waitLanes(t, ctx, 2)
	}
}
