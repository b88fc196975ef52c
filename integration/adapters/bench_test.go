package all_test

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	_ "github.com/millrace-go/millrace/adapters/all"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/router"
)

// eachBroker runs f on every broker, with a topic of its own that a group has been made for.
func eachBroker(b *testing.B, f func(b *testing.B, bs *bus.Bus, topic string)) {
	for _, name := range []string{"memory", "sqlite", "kafka", "rabbitmq", "postgres", "mysql"} {
		b.Run(name, func(b *testing.B) {
			var url string
			switch name {
			case "memory":
				url = "memory:"
			case "sqlite":
				url = "sqlite:" + filepath.Join(b.TempDir(), "bus.db")
			default:
				url = brokertest.URL(b, name)
			}
			bs, err := bus.Open(b.Context(), url)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := bs.Close(); err != nil {
					b.Error(err)
				}
			})
			f(b, bs, "bench-"+bus.NewID())
		})
	}
}

// messages are 256 bytes each, of 1,000 keys.
func messages(n int) []*bus.Message {
	payload := make([]byte, 256)
	slab := make([]bus.Message, n)
	msgs := make([]*bus.Message, n)
	for i := range slab {
		slab[i] = bus.Message{Key: "customer-" + strconv.Itoa(i%1000), Type: "order", Payload: payload}
		msgs[i] = &slab[i]
	}
	return msgs
}

func rate(b *testing.B, n int) {
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkPublish publishes from a number of goroutines at once, so many messages a call.
func BenchmarkPublish(b *testing.B) {
	for _, shape := range []struct{ goroutines, perCall int }{{1, 1}, {16, 1}, {64, 1}, {1, 100}, {1, 1000}} {
		b.Run("goroutines="+strconv.Itoa(shape.goroutines)+"/perCall="+strconv.Itoa(shape.perCall), func(b *testing.B) {
			eachBroker(b, func(b *testing.B, bs *bus.Bus, topic string) {
				if err := bs.PublishMessages(b.Context(), topic, messages(1)...); err != nil { // makes the topic
					b.Fatal(err)
				}
				var next atomic.Int64
				var wg sync.WaitGroup
				b.ReportAllocs()
				b.ResetTimer()
				for range shape.goroutines {
					wg.Go(func() {
						for next.Add(1) <= int64(b.N) {
							if err := bs.PublishMessages(b.Context(), topic, messages(shape.perCall)...); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				rate(b, b.N*shape.perCall)
			})
		})
	}
}

// BenchmarkConsume reads a backlog through the router, in the order of 1,000 keys.
func BenchmarkConsume(b *testing.B) {
	workers, err := strconv.Atoi(cmp.Or(os.Getenv("WORKERS"), "16"))
	if err != nil {
		b.Fatal(err)
	}
	eachBroker(b, func(b *testing.B, bs *bus.Bus, topic string) {
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		r := router.New(bs, "bench", router.Workers(workers))
		var handled atomic.Int64
		first, done := make(chan struct{}), make(chan struct{})
		r.HandleFunc(topic, func(context.Context, *bus.Message) error {
			switch handled.Add(1) {
			case 1:
				close(first)
			case int64(b.N) + 1:
				close(done)
			}
			return nil
		})
		over := make(chan error, 1)
		go func() { over <- r.Run(ctx) }()
		if err := r.Ready(ctx); err != nil {
			b.Fatal(err)
		}
		if err := bs.PublishMessages(ctx, topic, messages(1)...); err != nil {
			b.Fatal(err)
		}
		<-first // the group owns its lanes
		r.Routes()[0].Pause()
		for left := b.N; left > 0; left -= 1000 {
			if err := bs.PublishMessages(ctx, topic, messages(min(left, 1000))...); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportAllocs()
		b.ResetTimer()
		r.Routes()[0].Resume()
		select {
		case <-done:
		case err := <-over:
			b.Fatal(err)
		}
		b.StopTimer()
		rate(b, b.N)
		cancel()
		if err := <-over; err != nil {
			b.Error(err)
		}
		if n := handled.Load(); n != int64(b.N)+1 {
			b.Errorf("%d messages handled, want %d: some came twice", n, b.N+1)
		}
	})
}
