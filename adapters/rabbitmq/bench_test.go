package rabbitmq

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
)

// The benchmarks compare with the client library alone, on the same topology: durable, confirmed,
// mandatory, with headers of the same number and size.

func benchTopic(b *testing.B) (string, *busDriver, bus.Source) {
	c := brokerConfig(b)
	topic := newTopic(b, "g")
	d := openDriver(b, c)
	s, err := d.Subscribe(context.Background(), bus.Subscription{Topic: topic, Group: "g", InFlight: 2048, Bytes: 64 << 20}, newObserver())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close(context.Background()) })
	return topic, d, s
}

func benchMessage(i int) *bus.Message {
	return &bus.Message{
		ID: bus.NewID(), Key: "customer-" + strconv.Itoa(i%1000), Source: "/bench", Type: "bench.event", Time: time.Now(),
		ContentType: "application/json", Payload: make([]byte, 256),
	}
}

func rawConnection(b *testing.B) *amqp.Connection {
	c, err := brokerConfig(b).complete()
	if err != nil {
		b.Fatal(err)
	}
	conn, err := amqp.DialConfig("amqp://"+c.Hosts[0], amqp.Config{
		SASL: []amqp.Authentication{&amqp.PlainAuth{Username: c.User, Password: c.Password}}, Vhost: "/",
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return conn
}

func rawPublishing(m *bus.Message) amqp.Publishing {
	return amqp.Publishing{
		DeliveryMode: amqp.Persistent, MessageId: m.ID, ContentType: m.ContentType, Type: m.Type, Timestamp: m.Time, Body: m.Payload,
		Headers: amqp.Table{
			"cloudEvents_specversion": "1.0", "cloudEvents_id": m.ID, "cloudEvents_source": m.Source, "cloudEvents_type": m.Type,
			"cloudEvents_time": m.Time.Format(time.RFC3339Nano), "millrace-key": m.Key,
		},
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, c := range []struct{ goroutines, batch int }{{1, 1}, {16, 1}, {64, 1}, {1, 100}, {4, 100}} {
		name := fmt.Sprintf("%dx%d", c.goroutines, c.batch)
		run := func(b *testing.B, publish func(ms []*bus.Message) error) {
			var workers sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for w := range c.goroutines {
				workers.Go(func() {
					for i := w * c.batch; i < b.N; i += c.goroutines * c.batch {
						ms := make([]*bus.Message, c.batch)
						for k := range ms {
							ms[k] = benchMessage(i + k)
						}
						if err := publish(ms); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			workers.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		}
		b.Run("raw/"+name, func(b *testing.B) {
			topic, _, _ := benchTopic(b)
			ch, err := rawConnection(b).Channel()
			if err != nil {
				b.Fatal(err)
			}
			if err := ch.Confirm(false); err != nil {
				b.Fatal(err)
			}
			run(b, func(ms []*bus.Message) error {
				confirms := make([]*amqp.DeferredConfirmation, len(ms))
				for i, m := range ms {
					var err error
					if confirms[i], err = ch.PublishWithDeferredConfirm(topic, routingKeys[slot(m.Key)], true, false, rawPublishing(m)); err != nil {
						return err
					}
				}
				for _, c := range confirms {
					if !c.Wait() {
						return amqplink.ErrNack
					}
				}
				return nil
			})
		})
		b.Run("millrace/"+name, func(b *testing.B) {
			topic, d, _ := benchTopic(b)
			run(b, func(ms []*bus.Message) error { return d.Publish(context.Background(), topic, ms) })
		})
	}
}

func BenchmarkConsume(b *testing.B) {
	fill := func(b *testing.B, d *busDriver, topic string) {
		for i := 0; i < b.N; i += 500 {
			ms := make([]*bus.Message, min(500, b.N-i))
			for k := range ms {
				ms[k] = benchMessage(i + k)
			}
			if err := d.Publish(context.Background(), topic, ms); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("raw", func(b *testing.B) {
		topic, d, s := benchTopic(b)
		s.Close(context.Background())
		fill(b, d, topic)
		conn := rawConnection(b)
		b.ReportAllocs()
		b.ResetTimer()
		var lanes sync.WaitGroup
		left := make(chan struct{}, b.N)
		for range b.N {
			left <- struct{}{}
		}
		stop := make(chan struct{})
		for i := range DefaultLanes {
			ch, err := conn.Channel()
			if err != nil {
				b.Fatal(err)
			}
			if err := ch.Qos(256, 0, false); err != nil {
				b.Fatal(err)
			}
			ds, err := ch.Consume(laneName(groupName(topic, "g"), i), "", false, false, false, false, nil)
			if err != nil {
				b.Fatal(err)
			}
			lanes.Go(func() {
				n := 0
				var last uint64
				for {
					select {
					case m := <-ds:
						last = m.DeliveryTag
						if _, ok := m.Headers[markerHeader]; ok {
							continue
						}
						if n++; n%64 == 0 {
							_ = ch.Ack(last, true)
						}
						<-left
						if len(left) == 0 {
							select {
							case <-stop:
							default:
								close(stop)
							}
						}
					case <-stop:
						return
					}
				}
			})
		}
		lanes.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
	b.Run("millrace", func(b *testing.B) {
		topic, d, s := benchTopic(b)
		s.Close(context.Background())
		fill(b, d, topic)
		b.ReportAllocs()
		b.ResetTimer()
		s, err := d.Subscribe(context.Background(), bus.Subscription{Topic: topic, Group: "g", InFlight: 2048, Bytes: 64 << 20}, newObserver())
		if err != nil {
			b.Fatal(err)
		}
		dst := make([]bus.Delivery, 256)
		ts := make([]bus.Token, 256)
		for got := 0; got < b.N; {
			n, err := s.Receive(context.Background(), dst, 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			for i := range n {
				ts[i] = dst[i].Token
			}
			if err := s.Settle(context.Background(), ts[:n]); err != nil {
				b.Fatal(err)
			}
			got += n
		}
		b.StopTimer()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		s.Close(context.Background())
	})
}
