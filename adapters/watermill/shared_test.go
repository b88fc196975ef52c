package watermill_test

import (
	"context"
	"errors"
	"net/url"
	"reflect"
	"testing"
	"time"

	"github.com/IBM/sarama"
	wm "github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/adapters/watermill/brokers"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/router"
)

// partitionKey is how the Watermill service of these tests keys its messages.
func partitionKey(_ string, m *message.Message) (string, error) {
	return m.Metadata.Get("customer"), nil
}

// kafkaService is a Watermill service on Kafka with the marshalers that it has always had.
func kafkaService(t *testing.T, rawURL, group string) (message.Publisher, message.Subscriber) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	marshaler := kafka.NewWithPartitioningMarshaler(partitionKey)
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: []string{u.Host}, Marshaler: marshaler}, nil)
	if err != nil {
		t.Fatal(err)
	}
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	sub, err := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: []string{u.Host}, Unmarshaler: marshaler, ConsumerGroup: group, OverwriteSaramaConfig: config}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return pub, sub
}

// amqpService is a Watermill service on RabbitMQ. The exchange is Millrace's, so it must be
// declared like that.
func amqpService(t *testing.T, rawURL, topic, group string) (message.Publisher, message.Subscriber) {
	t.Helper()
	config := amqp.NewDurablePubSubConfig(rawURL, amqp.GenerateQueueNameTopicNameWithSuffix(group))
	config.Exchange.Arguments = amqp091.Table{"alternate-exchange": topic + "::unrouted"}
	pub, err := amqp.NewPublisher(config, wm.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	sub, err := amqp.NewSubscriber(config, wm.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	return pub, sub
}

// TestSharedTopic: a Watermill service and one on our own driver read each other's messages, and
// their own, on one topic.
func TestSharedTopic(t *testing.T) {
	for _, broker := range []string{"kafka", "rabbitmq"} {
		t.Run(broker, func(t *testing.T) {
			rawURL := brokertest.URL(t, broker)
			topic := name("shared")
			plain := open(t, rawURL)
			b := bus.New(watermill.Shared(plain.Driver())) // closed with plain
			got := make(chan bus.Message, 100)
			r := router.New(b, "millrace")
			r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
				got <- *m
				return nil
			})
			run(t, r)
			pub, sub := kafkaService, "watermill"
			var p message.Publisher
			var s message.Subscriber
			if broker == "kafka" {
				p, s = pub(t, rawURL, name(sub))
			} else {
				p, s = amqpService(t, rawURL, topic, sub)
			}
			defer func() {
				if err := errors.Join(p.Close(), s.Close()); err != nil {
					t.Error(err)
				}
			}()
			seen, err := s.Subscribe(t.Context(), topic)
			if err != nil {
				t.Fatal(err)
			}

			w := message.NewMessage("of-watermill", []byte("payload"))
			w.Metadata.Set("customer", "c1")
			w.Metadata.Set("tenant", "x")
			if err := p.Publish(topic, w); err != nil {
				t.Fatal(err)
			}
			m := <-got
			if m.ID != "of-watermill" || string(m.Payload) != "payload" || m.Headers.Get("tenant") != "x" || len(m.Headers) != 2 || m.Time.IsZero() {
				t.Errorf("Watermill's message came as %+v", m)
			}
			if broker == "kafka" && m.Key != "c1" {
				t.Errorf("Watermill's partition key came as %q", m.Key)
			}
			if w := receive(t, seen); w.UUID != "of-watermill" {
				t.Fatalf("came %s", w.UUID)
			} else {
				w.Ack()
			}

			for _, want := range messages() {
				publish(t, b, topic, want.Clone())
				w := receive(t, seen)
				if w.UUID != want.ID || string(w.Payload) != string(want.Payload) {
					t.Errorf("our message %s came as %+v", want.ID, w)
				}
				for _, h := range want.Headers {
					if v, ok := w.Metadata[h.Name]; !ok && h.Name != bus.HeaderCorrelationID && h.Name != bus.HeaderCausationID {
						t.Errorf("our message %s: header %s came as %q", want.ID, h.Name, v)
					}
				}
				w.Ack()
				m := <-got
				m.Time, m.Source = want.Time, want.Source // filled in at publishing
				if !reflect.DeepEqual(&m, want) {
					t.Errorf("our message:\n got %#v\nwant %#v", &m, want)
				}
			}
		})
	}
}

// TestBridgeReadsOurDrivers: the bridge reads messages that our own drivers publish without knowing
// of Watermill, and vice versa.
func TestBridgeReadsOurDrivers(t *testing.T) {
	rawURL := brokertest.URL(t, "kafka")
	topic := name("bridge")
	for i, from := range []string{rawURL, "watermill+" + rawURL} {
		to := []string{"watermill+" + rawURL, rawURL}[i]
		b := open(t, to)
		got := make(chan bus.Message, 100)
		r := router.New(b, name("g"), router.Workers(1))
		r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
			got <- *m
			return nil
		})
		run(t, r)
		m := &bus.Message{ID: "1", Key: "k", Type: "t", Source: "/s", Subject: "u", Time: time.Now().UTC(), ContentType: "x/y", Headers: bus.Headers{{Name: "a", Value: "1"}}, Payload: []byte("p")}
		m.ID += bus.NewID()
		publish(t, open(t, from), topic, m.Clone())
		for g := range got {
			if g.ID != m.ID { // of the round before
				continue
			}
			if g.Key != m.Key || g.Type != m.Type || g.Source != m.Source || g.Subject != m.Subject || !g.Time.Equal(m.Time) || g.ContentType != m.ContentType || g.Headers.Get("a") != "1" || string(g.Payload) != "p" {
				t.Errorf("from %d: %+v", i, g)
			}
			break
		}
	}
}

// TestAMQPMarshaler reads messages that watermill-amqp's own marshaler refuses.
func TestAMQPMarshaler(t *testing.T) {
	d := amqp091.Delivery{Headers: amqp091.Table{"x-delivery-count": int64(2), "b": []byte("bytes"), "s": "text", "l": []any{"1", "2"}}, MessageId: "id", ContentType: "x/y", Body: []byte("p")}
	if _, err := (amqp.DefaultMarshaler{}).Unmarshal(d); err == nil {
		t.Error("Watermill's own marshaler reads it, too: ours is not needed")
	}
	w, err := brokers.AMQPMarshaler{}.Unmarshal(d)
	if err != nil {
		t.Fatal(err)
	}
	want := message.Metadata{"x-delivery-count": "2", "b": "bytes", "s": "text", "l": "[1 2]", "content-type": "x/y"}
	if w.UUID != "id" || !reflect.DeepEqual(w.Metadata, want) {
		t.Errorf("%s %v", w.UUID, w.Metadata)
	}
}
