package main

import (
	"context"
	"errors"
	"time"

	"gocloud.dev/pubsub"
	"gocloud.dev/pubsub/mempubsub"
)

// gocloud is Go CDK's pubsub in memory. Its packages for Kafka and RabbitMQ are modules of their own.
var gocloud = map[string]opener{"memory": gocloudMemory}

type gocloudSide struct {
	topic *pubsub.Topic
	sub   *pubsub.Subscription
}

func gocloudMemory(context.Context, *place) (side, error) {
	t := mempubsub.NewTopic()
	return &gocloudSide{t, mempubsub.NewSubscription(t, time.Minute)}, nil
}

func (s *gocloudSide) publish(ctx context.Context, l load) error {
	return l.send(func(items []item) error {
		for _, it := range items {
			if err := s.topic.Send(ctx, &pubsub.Message{Body: it.payload, Metadata: map[string]string{"key": it.key}}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *gocloudSide) consume(ctx context.Context, work time.Duration, l *ledger) error {
	for {
		m, err := s.sub.Receive(ctx)
		if err != nil {
			return err
		}
		pass(work)
		l.note(m.Body)
		m.Ack()
	}
}

func (s *gocloudSide) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(s.sub.Shutdown(ctx), s.topic.Shutdown(ctx))
}
