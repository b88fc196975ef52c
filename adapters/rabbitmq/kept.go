package rabbitmq

import (
	"context"
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// moveBatch is how many kept messages are moved at a time.
const moveBatch = 256

// moveKept moves the messages of the topic's unrouted queue, in order: each is confirmed at its new place before it is
// taken from the old one. The caller has the topic's lock. It ends when the queue is empty, or has been once.
func (d *driver) moveKept(ctx context.Context, t *topology, topic string, route func(*amqp.Delivery) (exchange, key string)) error {
	for {
		kept, _, err := t.queue(unroutedName(topic))
		if err != nil || kept.Messages == 0 {
			return err
		}
		if err := d.moveSome(ctx, t.session, topic, kept.Messages, route); err != nil {
			return err
		}
	}
}

// moveSome moves n messages, with a channel of its own: closing it gives back what was delivered beyond them.
func (d *driver) moveSome(ctx context.Context, s *session, topic string, n int, route func(*amqp.Delivery) (exchange, key string)) error {
	ch, err := s.conn.Channel()
	if err != nil {
		return err
	}
	defer ch.Close()
	if err := ch.Qos(moveBatch, 0, false); err != nil {
		return err
	}
	deliveries, err := ch.Consume(unroutedName(topic), "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for n > 0 {
		batch, err := collect(ctx, deliveries, min(n, moveBatch))
		if err != nil || len(batch) == 0 {
			return err
		}
		if err := d.pub.send(ctx, len(batch), func(i int, x *parcel) error {
			x.exchange, x.key = route(&batch[i])
			x.Publishing = republish(&batch[i])
			return nil
		}); err != nil {
			return err
		}
		if err := ch.Ack(batch[len(batch)-1].DeliveryTag, true); err != nil {
			return err
		}
		n -= len(batch)
	}
	return nil
}

// collect waits for n deliveries. It returns fewer if none comes for a second: somebody else emptied the queue.
func collect(ctx context.Context, deliveries <-chan amqp.Delivery, n int) ([]amqp.Delivery, error) {
	batch := make([]amqp.Delivery, 0, n)
	late := time.NewTimer(time.Second)
	defer late.Stop()
	for len(batch) < n {
		select {
		case m, ok := <-deliveries:
			if !ok {
				return nil, errors.New("the channel was closed")
			}
			batch = append(batch, m)
			late.Reset(time.Second)
		case <-late.C:
			return batch, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return batch, nil
}

// republish is the publishing of a message as it arrived.
func republish(m *amqp.Delivery) amqp.Publishing {
	if m.Redelivered {
		delete(m.Headers, "x-delivery-count") // the queue's, and not to be taken for the publisher's
	}
	return amqp.Publishing{
		Headers: m.Headers, ContentType: m.ContentType, ContentEncoding: m.ContentEncoding, DeliveryMode: amqp.Persistent,
		Priority: m.Priority, CorrelationId: m.CorrelationId, ReplyTo: m.ReplyTo, Expiration: m.Expiration,
		MessageId: m.MessageId, Timestamp: m.Timestamp, Type: m.Type, AppId: m.AppId, Body: m.Body,
	}
}
