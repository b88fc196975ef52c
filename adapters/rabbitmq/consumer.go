package rabbitmq

import (
	"context"
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// answerPatience is how long a lane's queue may take to confirm a marker before nobody registers
// with it.
const answerPatience = 2 * time.Second

// consumer reads the deliveries of one registration at a lane.
type consumer struct {
	lane     *lane
	session  *amqplink.Session
	ch       *amqp.Channel
	own      *ownership
	assigned bool
	claimed  bool
	passed   bool          // the lane came to this member just before, and was let go
	gone     chan struct{} // closed when the channel has ended
	cause    error         // why, set before
	cancels  chan string
	// deliveries come from the early queue first, if there is one: it has the messages that the
	// topic kept before the group came. Behind its end marker they come from the lane's own queue.
	deliveries <-chan amqp.Delivery
	early      bool                        // they come from the early queue
	end        int64                       // the end marker's position
	settled    <-chan struct{}             // closed when all of the early queue is settled; nil when that was seen
	dropping   *amqplink.Attempt[struct{}] // the early queue's deletion
	dropEnded  <-chan struct{}             // closed when it has ended; nil when that was seen
	dropped    bool                        // the early queue was deleted from here
	parking    *parking
}

func newConsumer(l *lane, session *amqplink.Session) (*consumer, error) {
	ch, err := session.Conn.Channel()
	if err != nil {
		return nil, err
	}
	c := &consumer{
		lane: l, session: session, ch: ch, own: newOwnership(l.id, ch, l.source.prefetch), gone: make(chan struct{}),
		cancels: ch.NotifyCancel(make(chan string, 4)),
	}
	c.settled = c.own.early
	closes := ch.NotifyClose(make(chan *amqp.Error, 1))
	go func() {
		c.cause = errors.New("channel closed")
		if err := <-closes; err != nil {
			c.cause = err
		}
		close(c.gone)
	}()
	return c, nil
}

// begin registers with the broker.
func (c *consumer) begin(ctx context.Context, early bool) (err error) {
	queue := c.lane.name()
	if c.early = early; early {
		queue = c.lane.earlyName()
	}
	c.deliveries, err = c.consume(ctx, queue)
	return err
}

func (c *consumer) consume(ctx context.Context, queue string) (<-chan amqp.Delivery, error) {
	if !c.passed { // else the next member in line is given the deliveries, and knows by that
		if err := c.wake(ctx); err != nil {
			return nil, err
		}
	}
	c.own.rpc.Lock()
	err := c.ch.Qos(c.lane.source.prefetch, 0, false)
	c.own.rpc.Unlock()
	if err != nil {
		return nil, err
	}
	c.own.rpc.Lock()
	defer c.own.rpc.Unlock()
	deliveries, err := c.ch.Consume(queue, queue, false, false, false, false, nil)
	if err == nil {
		c.own.register(queue, true)
		if queue == c.lane.name() {
			c.own.begin()
		}
	}
	return deliveries, err
}

// wake lets the lane's active consumer know that it is active, and that there may be a member more.
//
// While the queue has not confirmed a marker, no more are sent. A marker that it confirms late may
// have come to an earlier registration, and is followed by another.
func (c *consumer) wake(ctx context.Context) error {
	for l := c.lane; ; {
		fresh := l.waking == nil || l.waking.Ended()
		if fresh {
			l.waking = l.wake()
		}
		if err := c.confirmed(ctx, l.waking); err != nil || fresh || !l.waking.Ended() {
			return err
		}
	}
}

// confirmed waits until a lane's queue has confirmed a marker. Nobody registers with a queue that
// does not confirm. When a consumer registers with a quorum queue that has no majority, the server
// ends the whole connection, and all lanes with it. While the broker blocks publishers, or there is
// no connection to publish on, nothing is known. A marker that failed is an answer, too: the broker
// knows why.
func (c *consumer) confirmed(ctx context.Context, marker *amqplink.Attempt[struct{}]) error {
	link := c.lane.source.d.pub.link
	waiting, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	if !link.Blocked() {
		select {
		case <-marker.Done():
		case <-waiting.Done():
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case marker.Ended() || link.Current() == nil || link.Blocked():
		return nil
	}
	return errSilent
}

// follow reads until the lane is given up or lost, or ctx ends.
func (c *consumer) follow(ctx context.Context) error {
	defer func() {
		if c.dropping != nil {
			<-c.dropping.Done() // the lane's end must know whether its early queue is there
		}
	}()
	calm := time.NewTimer(calmAfter)
	defer calm.Stop()
	for {
		if err := c.next(ctx, calm.C); err != nil {
			return err
		}
	}
}

// next waits for one thing to happen, and takes it. An error is why the lane ends here.
func (c *consumer) next(ctx context.Context, calm <-chan time.Time) error {
	select {
	case <-c.parkingClosed():
		return c.parking.cause
	case m, ok := <-c.deliveries:
		if !ok {
			return c.failure()
		}
		return c.arrive(ctx, &m)
	case <-c.settled:
		c.settled = nil
		// Meanwhile the lane goes on: to delete a quorum queue takes some ten milliseconds.
		c.dropping = amqplink.Start(func() (struct{}, error) { return struct{}{}, c.dropEarly(ctx) })
		c.dropEnded = c.dropping.Done()
	case <-c.dropEnded:
		c.dropEnded = nil
		_, err := c.dropping.Result()
		return err
	case queue, ok := <-c.cancels:
		return c.cancelled(queue, ok)
	case <-c.lane.revoke:
		if c.assigned {
			return c.giveUp(ctx)
		}
	case <-c.own.stuck:
		return errStuck
	case <-calm:
		c.lane.source.healed(spot(c.lane.id))
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// parkingClosed is closed when the parking queue's channel has ended. It is nil without one.
func (c *consumer) parkingClosed() <-chan struct{} {
	if c.parking == nil {
		return nil
	}
	return c.parking.closed
}

// cancelled takes the broker's word that it has ended a consumer of this channel. more is false
// when the channel has ended, and no more comes.
func (c *consumer) cancelled(queue string, more bool) error {
	if !more {
		c.cancels = nil
		return nil
	}
	if queue == c.lane.name() || c.early {
		return errCancelled
	}
	return nil // the early queue's, which was read to its end
}

// arrive takes a delivery.
func (c *consumer) arrive(ctx context.Context, m *amqp.Delivery) error {
	s, tag := c.lane.source, int64(m.DeliveryTag)
	c.own.add(tag)
	if !c.assigned {
		if c.claimed = s.claim(c.lane); !c.claimed {
			return errPassed
		}
		if err := c.assign(ctx); err != nil {
			return err
		}
	}
	if kind, ok := m.Headers[markerHeader]; ok {
		return c.mark(ctx, kind, m.MessageId, tag)
	}
	message := decode(m)
	identify(message, s.sub.Topic, bus.Token{Lane: c.lane.id, Epoch: c.own.lane.Epoch, Position: tag})
	if returns(m) >= maxLaneReturns && c.shelter(ctx, message, tag) {
		return nil
	}
	s.deliver(arrival{c.own, message, tag})
	return nil
}

// assign makes the lane this member's: the first delivery says that it is the active consumer.
func (c *consumer) assign(ctx context.Context) error {
	s := c.lane.source
	o, parks := s.observer.(driver.ParkingObserver)
	var parked []driver.Parked
	if parks {
		var err error
		if parked, err = c.openParking(ctx); err != nil {
			return err
		}
	}
	c.assigned = true
	c.lane.owned.Store(true)
	s.observer.Assigned([]bus.Lane{c.own.lane})
	if len(parked) > 0 {
		o.Parked(parked)
	}
	if parks {
		c.parking.start()
	}
	s.rebalance()
	return nil
}

// mark takes a marker.
func (c *consumer) mark(ctx context.Context, kind any, id string, tag int64) (err error) {
	last := false
	if kind == markEnd && c.early {
		t := &topology{session: c.session}
		defer t.close()
		if last, err = t.lastEnd(c.lane.source.group, id); err != nil {
			return err
		}
	}
	if last {
		// The marker stays unsettled until all before it is settled: without it, the lane's next
		// owner would wait for it for ever.
		c.early, c.end = false, tag
		c.own.expectEnd(tag)
		c.deliveries, err = c.consume(ctx, c.lane.name())
		return err
	}
	c.own.finish(tag)
	c.lane.source.rebalance()
	return nil
}

// dropEarly deletes the early queue once all its messages are settled: nothing is ever put behind
// its end marker. It waits for the broker even if ctx ends, because nothing may register with the
// queue meanwhile.
//
// The consumer is cancelled first. With a consumer on the channel, the broker would deliver nothing
// on it for 30 ms or a multiple of that: it tries in vain to register the consumer again (seen on
// 3.10.8).
func (c *consumer) dropEarly(ctx context.Context) error {
	unlock, err := c.lockEarly(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	c.own.rpc.Lock()
	c.own.register(c.lane.earlyName(), false)
	err = c.ch.Cancel(c.lane.earlyName(), false)
	c.own.rpc.Unlock()
	if err != nil {
		return err
	}
	t := &topology{session: c.session}
	defer t.close()
	if err := t.deleteQueue(c.lane.earlyName()); err != nil {
		return err
	}
	c.dropped = true
	c.own.finish(c.end)
	return nil
}

// lockEarly takes the topic's lock. The lanes of a member share it: each lane has to do with its
// own early queue.
func (c *consumer) lockEarly(ctx context.Context) (unlock func(), err error) {
	s := c.lane.source
	return s.lock.take(ctx, func() (func(), error) {
		t := &topology{session: c.session}
		unlock, err := s.d.lockFor(s.ctx, t, s.sub.Topic)
		if err != nil {
			t.close()
			return nil, err
		}
		return func() {
			unlock()
			t.close()
		}, nil
	})
}

// giveUp hands the lane to the next member in line, after the running handlers have ended. It waits
// as long as they take: the broker's consumer_timeout ends the channel over a message that stays
// unsettled for too long.
func (c *consumer) giveUp(ctx context.Context) error {
	c.lane.owned.Store(false)
	c.lane.source.shut(c.own)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		select {
		case <-c.gone: // another member has the lane already
			cancel()
		case <-ended:
		}
	}()
	c.lane.source.observer.Revoking(ctx, []bus.Lane{c.own.lane})
	close(ended)
	select {
	case <-c.gone:
		return c.cause
	default:
		return errGivenUp
	}
}

// failure is why the deliveries ended.
func (c *consumer) failure() error {
	if !c.ch.IsClosed() {
		return errCancelled
	}
	<-c.gone
	return c.cause
}
