package main

import (
	"context"
	stdsql "database/sql"
	"errors"
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

// watermills are Watermill's own packages, configured for durable use: acks=all, publisher confirms
// with a pool of channels, the same type of queue, committed rows. The rest is their default.
var watermills = map[string]opener{
	"memory":   watermillMemory,
	"kafka":    watermillKafka,
	"rabbitmq": watermillRabbitMQ,
	"postgres": watermillPostgres,
	"mysql":    watermillMySQL,
	"outbox":   openWatermillOutbox,
}

type watermillSide struct {
	pub   message.Publisher
	sub   subscriber
	topic string
	also  func() error // closes what pub and sub do not
	up    chan struct{}
}

func (s *watermillSide) running() <-chan struct{} { return s.up }

// subscriber creates the things that a topic needs before the first message; without it RabbitMQ
// would lose messages.
type subscriber interface {
	message.Subscriber
	SubscribeInitialize(topic string) error
}

// ready is one that needs nothing made.
type ready struct{ message.Subscriber }

func (ready) SubscribeInitialize(string) error { return nil }

const keyMetadata = "partition_key"

func (s *watermillSide) publish(_ context.Context, l load) error {
	if err := s.sub.SubscribeInitialize(s.topic); err != nil {
		return err
	}
	return l.send(func(items []item) error {
		msgs := make([]*message.Message, len(items))
		for i, it := range items {
			msgs[i] = message.NewMessage(watermill.NewUUID(), it.payload)
			msgs[i].Metadata.Set(keyMetadata, it.key)
		}
		return s.pub.Publish(s.topic, msgs...)
	})
}

func (s *watermillSide) consume(ctx context.Context, work time.Duration, l *ledger) error {
	r, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	r.AddConsumerHandler("bench", s.topic, s.sub, func(m *message.Message) error {
		pass(work)
		l.note(m.Payload)
		return nil
	})
	go func() {
		select {
		case <-r.Running():
			s.up <- struct{}{}
		case <-ctx.Done():
		}
	}()
	return r.Run(ctx)
}

func (s *watermillSide) close() error {
	err := errors.Join(s.pub.Close(), s.sub.Close())
	if s.also != nil {
		err = errors.Join(err, s.also())
	}
	return err
}

func watermillMemory(_ context.Context, p *place) (side, error) {
	g := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 1000}, watermill.NopLogger{})
	return &watermillSide{pub: g, sub: ready{g}, topic: p.topic, up: make(chan struct{}, 2)}, nil
}

func watermillKafka(_ context.Context, p *place) (side, error) {
	addresses, err := hosts(p.url)
	if err != nil {
		return nil, err
	}
	marshaler := kafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) {
		return m.Metadata.Get(keyMetadata), nil
	})
	pubConfig := kafka.DefaultSaramaSyncPublisherConfig()
	pubConfig.Producer.RequiredAcks = sarama.WaitForAll
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: addresses, Marshaler: marshaler, OverwriteSaramaConfig: pubConfig}, nil)
	if err != nil {
		return nil, err
	}
	subConfig := kafka.DefaultSaramaSubscriberConfig()
	subConfig.Consumer.Offsets.Initial = sarama.OffsetOldest
	sub, err := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers: addresses, Unmarshaler: marshaler, ConsumerGroup: p.topic, OverwriteSaramaConfig: subConfig,
	}, nil)
	if err != nil {
		return nil, errors.Join(err, pub.Close())
	}
	return &watermillSide{pub: pub, sub: ready{sub}, topic: p.topic, up: make(chan struct{}, 2)}, nil
}

func watermillRabbitMQ(_ context.Context, p *place) (side, error) {
	config := amqp.NewDurableQueueConfig(p.url)
	config.Queue.Arguments = map[string]any{"x-queue-type": *queueType}
	config.Publish.ConfirmDelivery = true
	config.Publish.ChannelPoolSize = 16
	pub, err := amqp.NewPublisher(config, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	sub, err := amqp.NewSubscriber(config, watermill.NopLogger{})
	if err != nil {
		return nil, errors.Join(err, pub.Close())
	}
	return &watermillSide{pub: pub, sub: sub, topic: p.topic, up: make(chan struct{}, 2)}, nil
}

func watermillPostgres(_ context.Context, p *place) (side, error) {
	db, err := stdsql.Open("pgx", p.url)
	if err != nil {
		return nil, err
	}
	bytea := func(string) string { return "BYTEA" }
	return watermillSQL(db, p, sql.DefaultPostgreSQLSchema{GeneratePayloadType: bytea}, sql.DefaultPostgreSQLOffsetsAdapter{})
}

func watermillMySQL(_ context.Context, p *place) (side, error) {
	db, err := p.mysqlDB()
	if err != nil {
		return nil, err
	}
	blob := func(string) string { return "LONGBLOB" }
	return watermillSQL(db, p, sql.DefaultMySQLSchema{GeneratePayloadType: blob}, sql.DefaultMySQLOffsetsAdapter{})
}

func watermillSQL(db *stdsql.DB, p *place, schema sql.SchemaAdapter, offsets sql.OffsetsAdapter) (side, error) {
	db.SetMaxOpenConns(32)
	db.SetMaxIdleConns(32) // its default of 2 would open a connection for nearly every message
	pub, err := sql.NewPublisher(sql.BeginnerFromStdSQL(db), sql.PublisherConfig{SchemaAdapter: schema, AutoInitializeSchema: true}, watermill.NopLogger{})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	sub, err := sql.NewSubscriber(sql.BeginnerFromStdSQL(db), sql.SubscriberConfig{
		ConsumerGroup: p.topic, SchemaAdapter: schema, OffsetsAdapter: offsets, InitializeSchema: true,
	}, watermill.NopLogger{})
	if err != nil {
		return nil, errors.Join(err, pub.Close(), db.Close())
	}
	return &watermillSide{pub: pub, sub: sub, topic: p.topic, also: db.Close, up: make(chan struct{}, 2)}, nil
}
