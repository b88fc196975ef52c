package brokers

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// KafkaMarshaler is watermill-kafka's default marshaler with the key: the record's key is the
// metadata [watermill.KeyMetadata], in both directions. A message without one has no key, so that
// it goes to any partition; the partitioning marshaler of watermill-kafka would give all of these
// an empty key, and so one partition.
type KafkaMarshaler struct{ kafka.DefaultMarshaler }

// Marshal implements kafka.Marshaler.
func (m KafkaMarshaler) Marshal(topic string, msg *message.Message) (*sarama.ProducerMessage, error) {
	record, err := m.DefaultMarshaler.Marshal(topic, msg)
	if key := msg.Metadata.Get(watermill.KeyMetadata); err == nil && key != "" {
		record.Key = sarama.StringEncoder(key)
	}
	return record, err
}

// Unmarshal implements kafka.Unmarshaler.
func (m KafkaMarshaler) Unmarshal(record *sarama.ConsumerMessage) (*message.Message, error) {
	msg, err := m.DefaultMarshaler.Unmarshal(record)
	if err == nil && len(record.Key) > 0 {
		msg.Metadata.Set(watermill.KeyMetadata, string(record.Key))
	}
	return msg, err
}

// kafkaMaxMessage is sarama's bound for a message, less what a record needs.
const kafkaMaxMessage = 1_000_000

func openKafka(ctx context.Context, p *driver.Params) (driver.Driver, error) {
	u := p.URL()
	if u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		p.Fail("want watermill+kafka://host:port,host2:port")
	}
	details := &sarama.TopicDetail{
		NumPartitions:     int32(p.Int("partitions", 0, 0, 10_000)),
		ReplicationFactor: int16(p.Int("replication", 1, 1, 100)),
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	brokers := strings.Split(u.Host, ",")
	publishing := kafka.DefaultSaramaSyncPublisherConfig()
	publishing.Producer.RequiredAcks = sarama.WaitForAll
	pub, err := within(ctx, func() (*kafka.Publisher, error) {
		return kafka.NewPublisher(kafka.PublisherConfig{Brokers: brokers, Marshaler: KafkaMarshaler{}, OverwriteSaramaConfig: publishing}, nil)
	})
	if err != nil {
		return nil, &bus.Error{Op: "open", Broker: "watermill-kafka", Err: err, Retryable: true}
	}
	subscriber := func(group string) (*kafka.Subscriber, error) {
		consuming := kafka.DefaultSaramaSubscriberConfig()
		consuming.Consumer.Offsets.Initial = sarama.OffsetOldest
		return kafka.NewSubscriber(kafka.SubscriberConfig{
			Brokers: brokers, Unmarshaler: KafkaMarshaler{}, OverwriteSaramaConfig: consuming, ConsumerGroup: group, InitializeTopicDetails: details,
		}, nil)
	}
	topics := &topics{}
	if details.NumPartitions > 0 {
		admin, err := subscriber("")
		if err != nil {
			return nil, errors.Join(err, pub.Close())
		}
		topics.make = admin.SubscribeInitialize
	}
	return watermill.Driver(creatingPublisher{pub, topics}, func(group string) (message.Subscriber, error) {
		sub, err := subscriber(group)
		return creatingSubscriber{sub, topics}, err
	}, watermill.Config{
		Broker: "watermill-kafka", Durable: true, Replay: true, MaxMessage: kafkaMaxMessage,
		Reader: func() (message.Subscriber, error) {
			sub, err := subscriber("")
			return patientReader{sub}, err
		},
	}), nil
}

// patientReader waits until a topic that was made just now has its leaders. Subscribers without a
// group do not.
type patientReader struct{ message.Subscriber }

// Subscribe implements message.Subscriber.
func (r patientReader) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	for {
		messages, err := r.Subscriber.Subscribe(ctx, topic)
		if !errors.Is(err, sarama.ErrNotLeaderForPartition) && !errors.Is(err, sarama.ErrLeaderNotAvailable) && !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
			return messages, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

// topics makes each topic once.
type topics struct {
	make func(topic string) error // nil if topics are not made
	made sync.Map
}

func (t *topics) ensure(topic string) error {
	if t.make == nil {
		return nil
	}
	if _, ok := t.made.Load(topic); ok {
		return nil
	}
	if err := t.make(topic); err != nil {
		return err
	}
	t.made.Store(topic, true)
	return nil
}

// creatingPublisher makes topics that do not exist.
type creatingPublisher struct {
	message.Publisher
	topics *topics
}

// Publish implements message.Publisher.
func (p creatingPublisher) Publish(topic string, msgs ...*message.Message) error {
	if err := p.topics.ensure(topic); err != nil {
		return err
	}
	return p.Publisher.Publish(topic, msgs...)
}

// creatingSubscriber makes topics that do not exist.
type creatingSubscriber struct {
	message.Subscriber
	topics *topics
}

// Subscribe implements message.Subscriber.
func (s creatingSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if err := s.topics.ensure(topic); err != nil {
		return nil, err
	}
	return s.Subscriber.Subscribe(ctx, topic)
}
