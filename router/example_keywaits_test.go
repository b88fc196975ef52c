package router_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync/atomic"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

type poisonedHook chan struct{}

func (h poisonedHook) Poisoned(context.Context, driver.PoisonEntry) { h <- struct{}{} }

// After a refused message its key waits until somebody replays the message, so the key's order is
// kept.
func ExamplePolicy_keyWaits() {
	ctx, stop := context.WithCancel(context.Background())
	b, err := memory.Open(memory.Config{}, bus.WithLogger(nil))
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	poisoned := make(poisonedHook, 1)
	var repaired atomic.Bool
	r := router.New(b, "ledger", router.Hooks(poisoned), router.Policy{KeyWaits: true})
	router.On(r, "bookings", func(_ context.Context, booking string) error {
		if booking == "open the account" && !repaired.Load() {
			return bus.Permanent(errors.New("no such customer"))
		}
		fmt.Println(booking)
		if booking == "book 10" {
			stop()
		}
		return nil
	})
	if err := bus.PublishAll(ctx, b, "bookings", []string{"open the account", "book 10"}, bus.WithKey("ada")); err != nil {
		log.Fatal(err)
	}
	over := make(chan error)
	go func() { over <- r.Run(ctx) }()
	<-poisoned
	repaired.Store(true)
	q, err := poison.Open(ctx, b, "ledger")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := q.Replay(ctx, poison.Filter{}, poison.Options{}); err != nil {
		log.Fatal(err)
	}
	if err := <-over; err != nil {
		log.Fatal(err)
	}
	// Output:
	// open the account
	// book 10
}
