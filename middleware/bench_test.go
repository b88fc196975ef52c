package middleware_test

import (
	"context"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/middleware"
)

// BenchmarkChain is what middleware costs a call, on top of the handler.
func BenchmarkChain(b *testing.B) {
	for name, mws := range map[string][]bus.Middleware{
		"none":             nil,
		"correlation":      {middleware.Correlation()},
		"timeout":          {middleware.Timeout(time.Minute)},
		"recover":          {middleware.Recover()},
		"retry":            {middleware.Retry([]time.Duration{time.Second})},
		"deduplicate":      {middleware.Deduplicate(&middleware.DedupMemory{}, func(*bus.Message) string { return bus.NewID() })},
		"throttle":         {middleware.Throttle(1e9, 1e9)},
		"concurrencylimit": {middleware.ConcurrencyLimit(1)},
	} {
		b.Run(name, func(b *testing.B) {
			var h bus.Handler = bus.HandlerFunc(func(context.Context, *bus.Message) error { return nil })
			for _, mw := range mws {
				h = mw(h)
			}
			m := &bus.Message{ID: "id", Headers: bus.Headers{{Name: "traceparent", Value: "00-1"}}}
			b.ReportAllocs()
			for b.Loop() {
				ctx := bus.NewHandling(b.Context(), nil, bus.Delivery{Message: m, Group: "g"})
				if err := h.Handle(ctx, m); err != nil {
					b.Fatal(err)
				}
				if err := ctx.Flush(ctx, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
