package router_test

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// BenchmarkMemory publishes one message a call, through the router, to a handler, in the order of
// 10,000 keys.
func BenchmarkMemory(b *testing.B) {
	router.Unchecked(b)
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = "customer-" + strconv.Itoa(i)
	}
	payload := make([]byte, 256)
	for _, workers := range []int{1, 4, 16, 64} {
		b.Run("workers="+strconv.Itoa(workers), func(b *testing.B) {
			m, err := memory.Open(memory.Config{}, bus.WithLogger(nil))
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			r := router.New(m, "bench", router.Workers(workers))
			var handled atomic.Int64
			done := make(chan struct{})
			r.HandleFunc("orders", func(context.Context, *bus.Message) error {
				if handled.Add(1) == int64(b.N) {
					close(done)
				}
				return nil
			})
			over := make(chan error)
			go func() { over <- r.Run(ctx) }()
			if err := r.Ready(ctx); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if err := m.PublishMessages(ctx, "orders", &bus.Message{Key: keys[i%len(keys)], Payload: payload}); err != nil {
					b.Fatal(err)
				}
			}
			<-done
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			cancel()
			if err := <-over; err != nil {
				b.Fatal(err)
			}
			if err := m.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
