package rabbitmq

import (
	"context"
	"testing"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
)

// A quorum queue says that it is empty when its leader is slow to answer. The first group gets the
// kept messages all the same, and before later messages.
func TestKeptWhileTheLeaderIsSlow(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	c.Lanes = 2
	direct := openDriver(t, brokerConfig(t))
	publish(t, direct, topic, messages(0, 20, 4)...)
	d := openDriver(t, c)
	p.blind(unroutedName(topic), 3)
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	publish(t, direct, topic, messages(20, 40, 4)...)
	got := receive(t, ctx, s, 40)
	checkOrder(t, got, 0, 40)
	settle(t, s, got)
}

// Somebody is moving the kept messages and dies. Messages that were delivered to this mover come
// back to their place before the next mover goes on.
func TestKeptWithAnotherMover(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 2
	direct, other, d := openDriver(t, c), openDriver(t, c), openDriver(t, c)
	publish(t, direct, topic, messages(0, 20, 4)...)
	ch, err := other.pub.link.Current().Conn.Channel()
	if err == nil {
		err = ch.Qos(10, 0, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	held, err := ch.Consume(unroutedName(topic), "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		<-held
	}
	left := make(chan struct{})
	go func() {
		defer close(left)
		admin(t, direct, func(tp *topology) error {
			for ctx.Err() == nil {
				if q, _, err := tp.queue(unroutedName(topic)); err != nil || q.Messages > 10 { // a fence
					return err
				}
			}
			return ctx.Err()
		})
		if err := ch.Close(); err != nil {
			t.Error(err)
		}
	}()
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	<-left
	publish(t, direct, topic, messages(20, 40, 4)...)
	got := receive(t, ctx, s, 40)
	checkOrder(t, got, 0, 40)
	settle(t, s, got)
}

// A member moved the kept messages, and died before it recorded that. Its end markers are not the
// end: the next member moves more behind them.
func TestKeptIsMovedTwice(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 2
	d := openDriver(t, c)
	group := groupName(topic, "g")
	publish(t, d, topic, messages(0, 10, 4)...)
	if err := d.withMover(ctx, topic, func(ctx context.Context, m *mover) error {
		lanes, err := m.t.declareGroup(d.cfg, group)
		if err == nil {
			err = m.t.attach(topic, group)
		}
		if err == nil {
			_, err = m.moveToGroup(ctx, d.cfg, group, lanes)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, m := range messages(10, 20, 4) { // which the broker was just routing
		if err := d.pub.send(ctx, 1, func(_ int, x *amqplink.Parcel) (err error) {
			x.Exchange, x.Key = unroutedName(topic), routingKeys[slot(m.Key)]
			x.Publishing, err = encode(m, amqplink.FrameSize)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	publish(t, d, topic, messages(20, 30, 4)...)
	got := receive(t, ctx, s, 30)
	checkOrder(t, got, 0, 30)
	settle(t, s, got)
}

// A mover that died left its fence, and the queue is full: the next one goes past both.
func TestKeptBehindFences(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes, c.Unrouted = 1, 12
	d := openDriver(t, c)
	fence := func() {
		t.Helper()
		if err := d.pub.send(ctx, 1, func(_ int, x *amqplink.Parcel) error {
			x.Key, x.Publishing = unroutedName(topic), marker(markFence)
			x.MessageId = bus.NewID()
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, d, topic, messages(0, 5, 4)...)
	fence()
	publish(t, d, topic, messages(5, 10, 4)...)
	fence()
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	got := receive(t, ctx, s, 10)
	checkOrder(t, got, 0, 10)
	settle(t, s, got)
	admin(t, d, func(tp *topology) error {
		ch, err := tp.channel()
		if err != nil {
			return err
		}
		if m, ok, err := ch.Get(unroutedName(topic), true); ok || err != nil {
			t.Errorf("%v was left: %v", m.Headers, err)
		}
		return nil
	})
}
