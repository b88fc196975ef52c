package middleware_test

import (
	"context"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/middleware"
)

// BenchmarkChain measures the cost of middleware for a call, on top of the handler.
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
		"full":             full,
	} {
		b.Run(name, func(b *testing.B) {
			call := chained(b, mws)
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}

// full is the chain that most services have. The router adds its policy.
var full = []bus.Middleware{middleware.Timeout(time.Minute), middleware.Correlation(), middleware.Recover()}

// chained is a call of a handler in a chain. The last link is the outermost.
func chained(tb testing.TB, mws []bus.Middleware) func() {
	var h bus.Handler = bus.HandlerFunc(func(context.Context, *bus.Message) error { return nil })
	for _, mw := range mws {
		h = mw(h)
	}
	m := &bus.Message{ID: "id", Headers: bus.Headers{{Name: "traceparent", Value: "00-1"}}}
	parent := tb.Context()
	return func() {
		ctx := engine.New(parent, nil, bus.Delivery{Message: m, Group: "g"})
		if err := h.Handle(ctx, m); err != nil {
			tb.Fatal(err)
		}
		if err := engine.Flush(ctx, ctx, nil); err != nil {
			tb.Fatal(err)
		}
	}
}

// TestChainAllocations: the full chain allocates twice a message.
func TestChainAllocations(t *testing.T) {
	none, all := testing.AllocsPerRun(1000, chained(t, nil)), testing.AllocsPerRun(1000, chained(t, full))
	if all-none > 2 {
		t.Errorf("the full chain allocates %v times", all-none)
	}
}
