package kafka_test

import (
	"context"
	"strconv"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// The benchmarks compare the driver with the native client, which does the same: the same headers,
// acks and compression, on the same machine. Run both halves of a pair in one command, and look at
// their ratio.

var benchPayload = func() []byte {
	p := make([]byte, 256)
	for i := range p { // nothing that a compressor could make smaller
		p[i] = byte(i*i*31 + i>>3*97)
	}
	return p
}()

func benchMessages(n int) []*bus.Message {
	slab := make([]bus.Message, n)
	ms := make([]*bus.Message, n)
	for i := range slab {
		slab[i] = bus.Message{Key: "key-" + strconv.Itoa(i%1000), Type: "order.placed", ContentType: "application/json", Payload: benchPayload}
		ms[i] = &slab[i]
	}
	return ms
}

func benchRecords(topic string, n int) []*kgo.Record {
	rs := make([]*kgo.Record, n)
	for i := range rs {
		rs[i] = &kgo.Record{
			Topic: topic, Key: []byte("key-" + strconv.Itoa(i%1000)), Value: benchPayload,
			Headers: []kgo.RecordHeader{
				{Key: "ce_specversion", Value: []byte("1.0")},
				{Key: "ce_id", Value: []byte(bus.NewID())},
				{Key: "ce_source", Value: []byte("/kafka.test")},
				{Key: "ce_type", Value: []byte("order.placed")},
				{Key: "ce_time", Value: []byte("2026-01-02T03:04:05.678901234Z")},
				{Key: "content-type", Value: []byte("application/json")},
			},
		}
	}
	return rs
}

// rawClient is a client with the bus's settings, as one would write it without the bus.
func rawClient(b *testing.B, opts ...kgo.Opt) *kgo.Client {
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(realConfig(b).Brokers...), kgo.ProducerLinger(0)}, opts...)...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

func BenchmarkPublish(b *testing.B) {
	for _, shape := range []struct{ goroutines, perCall int }{{1, 1}, {64, 1}, {1, 1000}} {
		b.Run("goroutines="+strconv.Itoa(shape.goroutines)+"/perCall="+strconv.Itoa(shape.perCall), func(b *testing.B) {
			run := func(b *testing.B, call func()) {
				call()
				var wg sync.WaitGroup
				b.ReportAllocs()
				b.ResetTimer()
				for g := range shape.goroutines {
					wg.Go(func() {
						for i := g; i < b.N; i += shape.goroutines {
							call()
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N*shape.perCall)/b.Elapsed().Seconds(), "msg/s")
			}
			b.Run("millrace", func(b *testing.B) {
				c := realConfig(b)
				c.Partitions = 4
				bs := open(b, c)
				topic := name("bench")
				run(b, func() {
					if err := bs.PublishMessages(b.Context(), topic, benchMessages(shape.perCall)...); err != nil {
						b.Error(err)
					}
				})
			})
			b.Run("raw", func(b *testing.B) {
				c := realConfig(b)
				c.Partitions = 4
				topic := name("bench")
				publish(b, open(b, c), topic, texts("makes the topic")...)
				client := rawClient(b)
				run(b, func() {
					if err := client.ProduceSync(b.Context(), benchRecords(topic, shape.perCall)...).FirstErr(); err != nil {
						b.Error(err)
					}
				})
			})
		})
	}
}

func BenchmarkConsume(b *testing.B) {
	c := realConfig(b)
	c.Partitions = 4
	bs := open(b, c)
	topic := name("bench")
	filled := 0
	fill := func(b *testing.B) {
		for ; filled < b.N; filled += 1000 {
			publish(b, bs, topic, benchMessages(1000)...)
		}
	}
	rate := func(b *testing.B) { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s") }
	b.Run("millrace", func(b *testing.B) {
		fill(b)
		o := newObserver()
		s := subscribe(b, bs, topic, name("g"), bus.Earliest, o)
		o.until(b, "all lanes", owns(4))
		buf := make([]bus.Delivery, 512)
		tokens := make([]bus.Token, 0, 512)
		b.ReportAllocs()
		b.ResetTimer()
		for n := 0; n < b.N; {
			k, err := s.Receive(b.Context(), buf, 64<<20)
			if err != nil {
				b.Fatal(err)
			}
			tokens = tokens[:0]
			for i := range buf[:k] {
				tokens = append(tokens, buf[i].Token)
			}
			if err := s.Settle(b.Context(), tokens); err != nil {
				b.Fatal(err)
			}
			n += k
		}
		b.StopTimer()
		rate(b)
	})
	b.Run("raw", func(b *testing.B) {
		fill(b)
		assigned := make(chan struct{})
		var once sync.Once
		client := rawClient(b, kgo.ConsumerGroup(name("g")), kgo.ConsumeTopics(topic), kgo.FetchMaxBytes(8<<20),
			kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) { once.Do(func() { close(assigned) }) }))
		<-assigned
		b.ReportAllocs()
		b.ResetTimer()
		for n := 0; n < b.N; {
			fetches := client.PollFetches(b.Context())
			if err := fetches.Err(); err != nil {
				b.Fatal(err)
			}
			n += fetches.NumRecords()
		}
		b.StopTimer()
		rate(b)
	})
}
