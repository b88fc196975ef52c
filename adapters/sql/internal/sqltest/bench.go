package sqltest

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"

	"github.com/millrace-go/millrace/bus"
)

// benchPayload is 256 bytes that do not compress.
var benchPayload = func() []byte {
	p := make([]byte, 256)
	_, _ = rand.Read(p)
	return p
}()

// BenchMessages makes n messages of 1,000 keys.
func BenchMessages(n int) []*bus.Message {
	msgs := make([]*bus.Message, n)
	for i := range msgs {
		msgs[i] = &bus.Message{Key: fmt.Sprintf("key-%d", i*7919%1000), Type: "order.placed", ContentType: "application/json", Payload: benchPayload}
	}
	return msgs
}

func rate(b *testing.B, n int) { b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "msg/s") }

// BenchPublish measures publishing, single messages by several goroutines, and many in one call.
func BenchPublish(b *testing.B, db Database) {
	for _, goroutines := range []int{1, 16, 64, 512} {
		b.Run(fmt.Sprintf("each1/goroutines%d", goroutines), func(b *testing.B) {
			mr, topic := db.Open(b), Topic()
			Publish(b, mr, topic, BenchMessages(1)...)
			var publishing sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for g := range goroutines {
				publishing.Go(func() {
					for i := g; i < b.N; i += goroutines {
						m := BenchMessages(1)
						if err := mr.PublishMessages(context.Background(), topic, m...); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			publishing.Wait()
			rate(b, b.N)
		})
	}
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("each%d", n), func(b *testing.B) {
			mr, topic := db.Open(b), Topic()
			Publish(b, mr, topic, BenchMessages(1)...)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				Publish(b, mr, topic, BenchMessages(n)...)
			}
			rate(b, b.N*n)
		})
	}
}

// BenchConsume measures receiving and settling a topic's messages.
func BenchConsume(b *testing.B, db Database) {
	const stored = 200_000
	mr, topic := db.Open(b), Topic()
	for range stored / 2000 {
		Publish(b, mr, topic, BenchMessages(2000)...)
	}
	group := 0
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		group++
		o := NewObserver()
		s, err := mr.Driver().Subscribe(context.Background(), bus.Subscription{Topic: topic, Group: fmt.Sprint("g", group), InFlight: 2048, Bytes: 32 << 20}, o)
		if err != nil {
			b.Fatal(err)
		}
		o.Await(b, lanes)
		b.StartTimer()
		buf := make([]bus.Delivery, 512)
		toks := make([]bus.Token, 512)
		for n := 0; n < stored; {
			k, err := s.Receive(context.Background(), buf, 32<<20)
			if err != nil {
				b.Fatal(err)
			}
			for i := range k {
				toks[i] = buf[i].Token
			}
			if err := s.Settle(context.Background(), toks[:k]); err != nil {
				b.Fatal(err)
			}
			n += k
		}
		Close(b, s)
	}
	rate(b, b.N*stored)
}
