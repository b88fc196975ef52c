package router_test

import (
	"context"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

type valueKey struct{}

// The values of Run's context reach the handlers of single messages and of batches; its end only
// begins the drain.
func TestRunValues(t *testing.T) {
	b := bustest.New(t, bus.WithLogger(testlog.New(t)))
	r := router.New(b, "g")
	got := make(chan any, 2)
	r.HandleFunc("one", func(ctx context.Context, _ *bus.Message) error {
		got <- ctx.Value(valueKey{})
		return ctx.Err()
	})
	r.Handle("many", bus.TypedBatch(func(ctx context.Context, _ []bus.Event[int]) error {
		got <- ctx.Value(valueKey{})
		return ctx.Err()
	}))
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), valueKey{}, "value"))
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	for _, topic := range []string{"one", "many"} {
		if err := b.Publish(t.Context(), topic, 1); err != nil {
			t.Fatal(err)
		}
		if v := <-got; v != "value" {
			t.Errorf("%s: the handler's context has the value %v", topic, v)
		}
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
}
