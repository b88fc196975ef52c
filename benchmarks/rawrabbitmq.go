package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// rabbitSide is amqp091-go on a direct exchange and as many queues as ours have, bound by a number
// that the key gives. All callers share one channel, with publisher confirms.
type rabbitSide struct {
	publishing, consuming *amqp.Connection
	topic                 string
	lanes                 int

	mu sync.Mutex // publishing on one channel is one at a time, and the order of confirms that of publishing
	ch *amqp.Channel
}

func rawLane(topic string, lane int) string { return topic + ":raw:" + strconv.Itoa(lane) }

func rawRabbitMQ(_ context.Context, p *place) (side, error) {
	s := &rabbitSide{topic: p.topic, lanes: p.lanes}
	var err error
	if s.publishing, err = amqp.Dial(p.url); err != nil {
		return nil, err
	}
	if s.consuming, err = amqp.Dial(p.url); err != nil {
		return nil, errors.Join(err, s.publishing.Close())
	}
	if err := s.declare(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *rabbitSide) declare() (err error) {
	if s.ch, err = s.publishing.Channel(); err != nil {
		return err
	}
	if err := s.ch.Confirm(false); err != nil {
		return err
	}
	if err := s.ch.ExchangeDeclare(s.topic, amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
		return err
	}
	for i := range s.lanes {
		name := rawLane(s.topic, i)
		if _, err := s.ch.QueueDeclare(name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: *queueType}); err != nil {
			return err
		}
		if err := s.ch.QueueBind(name, strconv.Itoa(i), s.topic, false, nil); err != nil {
			return err
		}
	}
	return nil
}

// publish sends all messages of a call before it waits for their confirms.
func (s *rabbitSide) publish(ctx context.Context, l load) error {
	return l.send(func(items []item) error {
		confirms := make([]*amqp.DeferredConfirmation, len(items))
		s.mu.Lock()
		for i, it := range items {
			var err error
			confirms[i], err = s.ch.PublishWithDeferredConfirm(s.topic, strconv.Itoa(rawShard(it.key, s.lanes)), true, false, amqp.Publishing{
				DeliveryMode: amqp.Persistent, MessageId: rawID, Body: it.payload,
				Headers: amqp.Table{
					"cloudEvents_specversion": "1.0", "cloudEvents_id": rawID, "cloudEvents_source": rawSource,
					"cloudEvents_time": "2026-01-02T03:04:05.678901234Z", "cloudEvents_partitionkey": it.key,
				},
			})
			if err != nil {
				s.mu.Unlock()
				return err
			}
		}
		s.mu.Unlock()
		for _, c := range confirms {
			if ok, err := c.WaitContext(ctx); err != nil || !ok {
				return errors.Join(err, fmt.Errorf("message not confirmed: %v", ok))
			}
		}
		return nil
	})
}

// rawPrefetch is a usual prefetch.
const rawPrefetch = 256

// consume handles the queues at once, each in order, and acknowledges the messages handled so far
// with one frame.
func (s *rabbitSide) consume(ctx context.Context, work time.Duration, l *ledger) error {
	var lanes sync.WaitGroup
	defer lanes.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for i := range s.lanes {
		ch, err := s.consuming.Channel()
		if err != nil {
			return err
		}
		if err := ch.Qos(rawPrefetch, 0, false); err != nil {
			return err
		}
		deliveries, err := ch.Consume(rawLane(s.topic, i), "", false, false, false, false, nil)
		if err != nil {
			return err
		}
		lanes.Go(func() {
			if err := s.lane(ctx, deliveries, work, l); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (s *rabbitSide) lane(ctx context.Context, deliveries <-chan amqp.Delivery, work time.Duration, l *ledger) error {
	for n := 1; ; n++ {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return amqp.ErrClosed
			}
			pass(work)
			l.note(d.Body)
			if len(deliveries) == 0 || n%64 == 0 {
				if err := d.Ack(true); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *rabbitSide) close() error { return errors.Join(s.publishing.Close(), s.consuming.Close()) }
