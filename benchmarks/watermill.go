package main

import (
	"context"
	stdsql "database/sql"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	_ "github.com/jackc/pgx/v5/stdlib"
)

// watermills are Watermill's own packages, configured for durable use: acks=all, publisher confirms with a pool of
// channels, committed rows. The rest is their default.
var watermills = map[string]func(ctx context.Context, url string) (side, error){
	"memory":   watermillMemory,
	"kafka":    watermillKafka,
	"rabbitmq": watermillRabbitMQ,
	"postgres": watermillPostgres,
}

type watermillSide struct {
	pub      message.Publisher
	sub      subscriber
	closeAll func() error
}

// subscriber is one that makes what a topic needs before the first message; without it RabbitMQ would lose them.
type subscriber interface {
	message.Subscriber
	SubscribeInitialize(topic string) error
}

// ready is one that needs nothing made.
type ready struct{ message.Subscriber }

func (ready) SubscribeInitialize(string) error { return nil }

const keyMetadata = "partition_key"

func (s watermillSide) publish(_ context.Context, topic string, first, n, goroutines, perCall int) error {
	if err := s.sub.SubscribeInitialize(topic); err != nil {
		return err
	}
	return spread(first, n, goroutines, perCall, func(numbers []int) error {
		msgs := make([]*message.Message, len(numbers))
		for i, number := range numbers {
			msgs[i] = message.NewMessage(watermill.NewUUID(), payload(number))
			msgs[i].Metadata.Set(keyMetadata, keys[number%len(keys)])
		}
		return s.pub.Publish(topic, msgs...)
	})
}

func (s watermillSide) consume(ctx context.Context, topic string, work time.Duration, l *ledger) error {
	r, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	r.AddConsumerHandler("bench", topic, s.sub, func(m *message.Message) error {
		time.Sleep(work)
		l.note(m.Payload)
		return nil
	})
	return r.Run(ctx)
}

func (s watermillSide) close() error {
	err := errors.Join(s.pub.Close(), s.sub.Close())
	if s.closeAll != nil {
		err = errors.Join(err, s.closeAll())
	}
	return err
}

func watermillMemory(context.Context, string) (side, error) {
	g := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 1000, Persistent: true}, watermill.NopLogger{})
	return watermillSide{pub: g, sub: ready{g}}, nil
}

func watermillKafka(_ context.Context, rawURL string) (side, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	brokers := strings.Split(u.Host, ",")
	marshaler := kafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) {
		return m.Metadata.Get(keyMetadata), nil
	})
	pubConfig := kafka.DefaultSaramaSyncPublisherConfig()
	pubConfig.Producer.RequiredAcks = sarama.WaitForAll
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: brokers, Marshaler: marshaler, OverwriteSaramaConfig: pubConfig}, nil)
	if err != nil {
		return nil, err
	}
	subConfig := kafka.DefaultSaramaSubscriberConfig()
	subConfig.Consumer.Offsets.Initial = sarama.OffsetOldest
	sub, err := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: brokers, Unmarshaler: marshaler, ConsumerGroup: "bench-watermill", OverwriteSaramaConfig: subConfig}, nil)
	if err != nil {
		return nil, err
	}
	return watermillSide{pub: pub, sub: ready{sub}}, nil
}

func watermillRabbitMQ(_ context.Context, url string) (side, error) {
	config := amqp.NewDurableQueueConfig(url)
	config.Publish.ConfirmDelivery = true
	config.Publish.ChannelPoolSize = 16
	pub, err := amqp.NewPublisher(config, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	sub, err := amqp.NewSubscriber(config, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	return watermillSide{pub: pub, sub: sub}, nil
}

func watermillPostgres(_ context.Context, url string) (side, error) {
	db, err := stdsql.Open("pgx", url)
	if err != nil {
		return nil, err
	}
	bytea := func(string) string { return "BYTEA" }
	schema := sql.DefaultPostgreSQLSchema{GeneratePayloadType: bytea}
	pub, err := sql.NewPublisher(sql.BeginnerFromStdSQL(db), sql.PublisherConfig{SchemaAdapter: schema, AutoInitializeSchema: true}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	sub, err := sql.NewSubscriber(sql.BeginnerFromStdSQL(db), sql.SubscriberConfig{
		ConsumerGroup: "bench", SchemaAdapter: schema, OffsetsAdapter: sql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
	}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	return watermillSide{pub: pub, sub: sub, closeAll: db.Close}, nil
}
