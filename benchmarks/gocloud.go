package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/IBM/sarama"
	amqp "github.com/rabbitmq/amqp091-go"
	"gocloud.dev/pubsub"
	"gocloud.dev/pubsub/kafkapubsub"
	"gocloud.dev/pubsub/mempubsub"
	"gocloud.dev/pubsub/rabbitpubsub"
)

// gocloud is Go CDK's pubsub.
var gocloud = map[string]opener{"memory": gocloudMemory, "kafka": gocloudKafka, "rabbitmq": gocloudRabbitMQ}

// gocloudSide has one receiver, whose handler is called in its turn. A publish of several messages
// is a Send of each, at once: there is no other call, and Send makes batches of them.
type gocloudSide struct {
	topic *pubsub.Topic
	sub   *pubsub.Subscription
	also  func() error // is closed with them; may be nil
	// persistent has RabbitMQ keep the message.
	persistent func(asFunc func(any) bool) error
}

func gocloudMemory(context.Context, *place) (side, error) {
	t := mempubsub.NewTopic()
	return &gocloudSide{topic: t, sub: mempubsub.NewSubscription(t, time.Minute)}, nil
}

func gocloudKafka(_ context.Context, p *place) (side, error) {
	addresses, err := hosts(p.url)
	if err != nil {
		return nil, err
	}
	config := kafkapubsub.MinimalConfig()
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	t, err := kafkapubsub.OpenTopic(addresses, config, p.topic, &kafkapubsub.TopicOptions{KeyName: "key"})
	if err != nil {
		return nil, err
	}
	sub, err := kafkapubsub.OpenSubscription(addresses, config, p.topic, []string{p.topic}, nil)
	if err != nil {
		return nil, errors.Join(err, t.Shutdown(context.Background()))
	}
	return &gocloudSide{topic: t, sub: sub}, nil
}

// gocloudRabbitMQ is a fanout exchange with one queue. Its publisher waits for confirms.
func gocloudRabbitMQ(_ context.Context, p *place) (side, error) {
	conn, err := amqp.Dial(p.url)
	if err != nil {
		return nil, err
	}
	if err := declareFanout(conn, p.topic); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	prefetch := 256
	return &gocloudSide{
		topic: rabbitpubsub.OpenTopic(conn, p.topic, nil),
		sub:   rabbitpubsub.OpenSubscription(conn, p.topic, &rabbitpubsub.SubscriptionOptions{PrefetchCount: &prefetch}),
		also:  conn.Close,
		persistent: func(as func(any) bool) error {
			var m *amqp.Publishing
			if !as(&m) {
				return errors.New("go-cloud: the message is not one of RabbitMQ's")
			}
			m.DeliveryMode = amqp.Persistent
			return nil
		},
	}, nil
}

// declareFanout declares an exchange and a queue of one name.
func declareFanout(conn *amqp.Connection, name string) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	defer ch.Close()
	if err := ch.ExchangeDeclare(name, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
		return err
	}
	if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: *queueType}); err != nil {
		return err
	}
	return ch.QueueBind(name, "", name, false, nil)
}

func (s *gocloudSide) publish(ctx context.Context, l load) error {
	return l.send(func(items []item) error {
		if len(items) == 1 {
			return s.sendOne(ctx, items[0])
		}
		errs := make([]error, len(items))
		var sent sync.WaitGroup
		for i, it := range items {
			sent.Go(func() { errs[i] = s.sendOne(ctx, it) })
		}
		sent.Wait()
		return errors.Join(errs...)
	})
}

func (s *gocloudSide) sendOne(ctx context.Context, it item) error {
	return s.topic.Send(ctx, &pubsub.Message{Body: it.payload, Metadata: map[string]string{"key": it.key}, BeforeSend: s.persistent})
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
	err := errors.Join(s.sub.Shutdown(ctx), s.topic.Shutdown(ctx))
	if s.also != nil {
		err = errors.Join(err, s.also())
	}
	return err
}
