package router_test

import (
	"context"
	"math"
	"runtime"
	"strconv"
	"testing"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// TestAllocations holds the way of a message through memory, from the publisher to the handler, to
// two allocations: the publisher's own message, and its id. All else is allocated for many at once,
// or pooled, of which the race detector drops a quarter.
func TestAllocations(t *testing.T) {
	const n = 20_000
	m, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	handled := make(chan struct{}, n)
	r := router.New(m, "allocations")
	r.HandleFunc("orders", func(context.Context, *bus.Message) error {
		handled <- struct{}{}
		return nil
	})
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = "customer-" + strconv.Itoa(i)
	}
	payload := make([]byte, 256)
	publish := func(n int) {
		for i := range n {
			if err := m.PublishMessages(ctx, "orders", &bus.Message{Key: keys[i%len(keys)], Payload: payload}); err != nil {
				t.Fatal(err)
			}
		}
		for range n {
			<-handled
		}
	}
	publish(n) // makes what the first messages make
	least := math.Inf(1)
	for range 5 { // a collection in the middle of a round empties the pools, on a busy machine even more than once
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		publish(n)
		runtime.ReadMemStats(&after)
		least = min(least, float64(after.Mallocs-before.Mallocs)/n)
	}
	if least > 2.75 {
		t.Errorf("%.2f allocations a message: want at most 2.75", least)
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
