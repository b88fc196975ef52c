package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// moveBatch is how many kept messages are moved at a time.
const moveBatch = 256

// mover moves the messages that a topic kept. It reads, publishes and has the topic's lock on one
// connection of its own. When that connection breaks, the lock is free, and nothing that the mover
// had under way comes behind the next mover's messages.
type mover struct {
	t    *topology
	pipe *amqplink.Pipeline
	// queue is the topic's unrouted queue.
	queue string
}

// withMover takes the topic's lock and runs f.
func (d *busDriver) withMover(ctx context.Context, topic string, f func(ctx context.Context, m *mover) error) error {
	s, err := amqplink.Dial(ctx, d.cfg.link(), "setup")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.closing, func() { cancel(bus.ErrClosed) })()
	// No request of the client library heeds a context. Here the connection can end with it.
	defer context.AfterFunc(ctx, func() { _ = s.Conn.CloseDeadline(time.Now()) })() // it is closed in any case, here and below
	defer func() {
		_ = s.Conn.CloseDeadline(time.Now().Add(time.Second))
		<-s.Done
	}()
	t := &topology{session: s}
	unlock, err := d.lockFor(ctx, t, topic)
	if err == nil {
		defer unlock()
		var pipe *amqplink.Pipeline
		if pipe, err = s.NewPipeline(); err == nil {
			err = f(ctx, &mover{t: t, pipe: pipe, queue: unroutedName(topic)})
		}
	}
	switch reason := s.BlockedBy(); {
	case err == nil:
		return nil
	case ctx.Err() != nil && reason != "":
		return fmt.Errorf("the broker blocks publishers (%s): %w", reason, context.Cause(ctx))
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// send publishes n parcels.
func (m *mover) send(ctx context.Context, n int, fill func(i int, x *amqplink.Parcel) error) error {
	return errors.Join(m.pipe.Publish(ctx, n, fill)...)
}

// moveKept moves the messages of the unrouted queue, in order. Each message is confirmed at its new
// place before it is taken from the old place. before is called once, before the first message is
// moved. moved says whether there was any.
//
// It ends at a fence that it puts into the queue. The queue's length would not tell the end: a
// quorum queue says 0 whenever its leader does not answer within 250 ms.
func (m *mover) moveKept(ctx context.Context, before func() error, route func(*amqp.Delivery) (exchange, key string)) (moved bool, err error) {
	ch, deliveries, err := m.consume(ctx)
	if err != nil {
		return false, err
	}
	defer ch.Close()
	fence, fenced := bus.NewID(), false
	for {
		size := moveBatch
		if !fenced {
			if fenced, err = m.fence(ctx, fence); err != nil {
				return moved, err
			} else if !fenced {
				size = 1 // the queue is full: make room for the fence
			}
		}
		batch, last, end, err := collect(ctx, deliveries, size, fence)
		if err != nil {
			return moved, err
		}
		if len(batch) > 0 && !moved {
			if err := before(); err != nil {
				return false, err
			}
			moved = true
		}
		if err := m.send(ctx, len(batch), func(i int, x *amqplink.Parcel) error {
			x.Exchange, x.Key = route(&batch[i])
			x.Publishing = republish(&batch[i])
			return nil
		}); err != nil {
			return moved, err
		}
		if err := ch.Ack(last, true); err != nil || end {
			return moved, err
		}
	}
}

// consume registers with the unrouted queue.
func (m *mover) consume(ctx context.Context) (*amqp.Channel, <-chan amqp.Delivery, error) {
	if err := m.alone(ctx); err != nil {
		return nil, nil, err
	}
	ch, err := m.t.session.Conn.Channel()
	if err == nil {
		err = ch.Qos(moveBatch, 0, false)
	}
	if err != nil {
		return nil, nil, err
	}
	deliveries, err := ch.Consume(m.queue, "", false, false, false, false, nil)
	return ch, deliveries, err
}

// alonePatience is how long alone waits. The broker counts a consumer on a node that is down until
// the node is back, though it has taken back the consumer's messages.
const alonePatience = 5 * time.Second

// alone waits until nobody consumes from the unrouted queue. Then messages that another mover was
// delivered and has not moved are back at their place. If a queue says that it holds something and
// has no consumer, that is certain. A queue also says that it is empty and has no consumer when its
// leader does not answer; so a fence is put into it first.
func (m *mover) alone(ctx context.Context) error {
	if _, err := m.fence(ctx, "alone"); err != nil {
		return err
	}
	late := time.Now().Add(alonePatience)
	for n := 0; ; n++ {
		q, ok, err := m.t.queue(m.queue)
		switch {
		case err != nil:
			return err
		case !ok:
			return fmt.Errorf("queue %q is gone", m.queue)
		case q.Consumers == 0 && q.Messages > 0, time.Now().After(late):
			return nil
		}
		if !backoff.Sleep(ctx, backoff.Pause(min(n, 1)+1)) {
			return context.Cause(ctx)
		}
	}
}

// fence puts a fence into the unrouted queue. stored is false if there is no room.
func (m *mover) fence(ctx context.Context, id string) (stored bool, err error) {
	err = m.send(ctx, 1, func(_ int, x *amqplink.Parcel) error {
		x.Key, x.Publishing = m.queue, marker(markFence)
		x.MessageId = id
		return nil
	})
	if r, ok := errors.AsType[*amqplink.RefusedError](err); ok && r.Nack {
		return false, nil
	}
	return err == nil, err
}

// collect waits for n messages, or for the fence: then end is true. Everything up to the tag last
// is in the batch, or is a fence that a mover left behind.
func collect(ctx context.Context, deliveries <-chan amqp.Delivery, n int, fence string) (batch []amqp.Delivery, last uint64, end bool, err error) {
	for len(batch) < n && !end {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return nil, 0, false, errors.New("the broker ended the consumer")
			}
			last = d.DeliveryTag
			if d.Headers[markerHeader] == markFence {
				end = d.MessageId == fence
				continue
			}
			batch = append(batch, d)
		case <-ctx.Done():
			return nil, 0, false, context.Cause(ctx)
		}
	}
	return batch, last, end, nil
}

// republish is the publishing of a message as it arrived.
func republish(m *amqp.Delivery) amqp.Publishing {
	if m.Redelivered { // the queue's, and not to be taken for the publisher's
		delete(m.Headers, "x-delivery-count")
		delete(m.Headers, "x-acquired-count")
	}
	return amqp.Publishing{
		Headers: m.Headers, ContentType: m.ContentType, ContentEncoding: m.ContentEncoding, DeliveryMode: amqp.Persistent,
		Priority: m.Priority, CorrelationId: m.CorrelationId, ReplyTo: m.ReplyTo, Expiration: m.Expiration,
		MessageId: m.MessageId, Timestamp: m.Timestamp, Type: m.Type, AppId: m.AppId, Body: m.Body,
	}
}
