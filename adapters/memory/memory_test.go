package memory_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// TestSmallCapacity: a topic full of settled messages takes new ones, however many it should
// retain.
func TestSmallCapacity(t *testing.T) {
	for _, c := range []memory.Config{
		{Capacity: 1}, {Capacity: 2}, {Capacity: 100}, {Capacity: 100, Retain: 100}, {Capacity: 100, Retain: -1}, {Bytes: 400}, {Bytes: 1000},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, err := memory.Open(c)
				if err != nil {
					t.Fatal(err)
				}
				const n = 2000
				handled := 0
				r := router.New(b, "g", router.Workers(1))
				r.HandleFunc("t", func(context.Context, *bus.Message) error { handled++; return nil })
				ctx, cancel := context.WithCancel(t.Context())
				over := make(chan error, 1)
				go func() { over <- r.Run(ctx) }()
				if err := r.Ready(ctx); err != nil {
					t.Fatal(err)
				}
				for range n {
					if err := b.PublishMessages(ctx, "t", &bus.Message{Payload: []byte("x")}); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				cancel()
				if err := <-over; err != nil {
					t.Error(err)
				}
				if handled != n {
					t.Errorf("%d of %d were handled", handled, n)
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestManyPublishersInASmallTopic: a topic that many publish to at once holds no more than it may,
// and none of them waits for ever.
func TestManyPublishersInASmallTopic(t *testing.T) {
	const capacity, publishers, each = 3, 8, 500
	b, err := memory.Open(memory.Config{Capacity: capacity, Retain: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	publish := func() {
		var all sync.WaitGroup
		for range publishers {
			all.Go(func() {
				for range each {
					if err := b.PublishMessages(t.Context(), "t", &bus.Message{}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
	}
	publish() // nobody consumes: the oldest are forgotten
	var handled atomic.Int32
	r := router.New(b, "g", router.Workers(2))
	r.HandleFunc("t", func(context.Context, *bus.Message) error { handled.Add(1); return nil })
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	publish()
	cancel() // the topic's rest is at most its capacity
	if err := <-over; err != nil {
		t.Error(err)
	}
	if n := handled.Load(); n < publishers*each-capacity || n > publishers*each+capacity {
		t.Errorf("%d were handled, want %d, and at most %d more or less", n, publishers*each, capacity)
	}
}

// TestRetain: a late group gets the retained messages, as far as the topic has room for them.
func TestRetain(t *testing.T) {
	for _, tc := range []struct{ capacity, retain, least, most int }{
		{100, 10, 10, 100}, {100, 100, 90, 100}, {1600, 100, 100, 1600}, {100, -1, 0, 100},
	} {
		t.Run(fmt.Sprint(tc.capacity, "/", tc.retain), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, err := memory.Open(memory.Config{Capacity: tc.capacity, Retain: tc.retain})
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				consume := func(group string) (handled *int, stop func()) {
					handled = new(int)
					r := router.New(b, group, router.Workers(1))
					r.HandleFunc("t", func(context.Context, *bus.Message) error { *handled++; return nil })
					ctx, cancel := context.WithCancel(t.Context())
					over := make(chan error, 1)
					go func() { over <- r.Run(ctx) }()
					if err := r.Ready(ctx); err != nil {
						t.Fatal(err)
					}
					return handled, func() {
						cancel()
						if err := <-over; err != nil {
							t.Error(err)
						}
					}
				}
				first, stop := consume("first")
				defer stop()
				const n = 5000
				for range n {
					if err := b.PublishMessages(t.Context(), "t", &bus.Message{}); err != nil {
						t.Fatal(err)
					}
				}
				late, stopLate := consume("late")
				defer stopLate()
				synctest.Wait()
				if *first != n || *late < tc.least || *late > tc.most {
					t.Errorf("%d came to the first, %d to the late one: want %d to %d", *first, *late, tc.least, tc.most)
				}
			})
		})
	}
}
