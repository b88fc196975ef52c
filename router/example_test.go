package router_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

type Payment struct{ Order string }

// A policy by handler: what is retried and how often, and what is refused for good.
func ExamplePolicy() {
	b, err := memory.Open(memory.Config{}, bus.WithLogger(nil))
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	refused := errors.New("card refused")
	ctx, stop := context.WithCancel(context.Background())
	r := router.New(b, "billing")
	router.On(r, "payments", func(ctx context.Context, p Payment) error {
		d := bus.DeliveryFrom(ctx)
		fmt.Println(p.Order, "attempt", d.Attempt)
		switch {
		case p.Order == "o2":
			return refused
		case d.Attempt == 1:
			return errors.New("bank away")
		}
		stop()
		return nil
	}, router.Policy{
		Retry:     router.Schedule{10 * time.Millisecond, time.Second, time.Minute},
		Permanent: router.Is(refused),
	})
	if err := bus.PublishAll(ctx, b, "payments", []Payment{{"o2"}, {"o1"}}, bus.WithKey("ada")); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	store, err := driver.Of(b).Poison(context.Background(), "billing")
	if err != nil {
		log.Fatal(err)
	}
	for e, err := range store.List(context.Background()) {
		fmt.Println("poisoned:", e.Failure.Class, e.Failure.Text, err)
	}
	// Output:
	// o2 attempt 1
	// o1 attempt 1
	// o1 attempt 2
	// poisoned: permanent card refused <nil>
}

// A batch handler has one outcome for each message.
func ExampleOnBatch() {
	b, err := memory.Open(memory.Config{}, bus.WithLogger(nil))
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	ctx, stop := context.WithCancel(context.Background())
	if err := bus.PublishAll(ctx, b, "payments", []Payment{{"o1"}, {""}, {"o3"}}); err != nil {
		log.Fatal(err)
	}
	r := router.New(b, "archive")
	router.OnBatch(r, "payments", func(_ context.Context, batch []bus.Event[Payment]) error {
		errs := make([]error, len(batch))
		for i, e := range batch {
			if e.Value.Order == "" {
				errs[i] = bus.Permanent(errors.New("no order"))
			}
		}
		fmt.Println(len(batch), "payments")
		stop()
		return bus.PerMessage(errs)
	}, router.Fill(3, time.Second))
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: 3 payments
}

// Two groups of one router: each gets every message; options differ.
func ExampleRouter_Group() {
	b, err := memory.Open(memory.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	r := router.New(b, "billing")
	router.On(r, "orders", func(context.Context, Payment) error { return nil })
	loyalty := r.Group("loyalty", router.Workers(64))
	router.On(loyalty, "orders", func(context.Context, Payment) error { return nil })
	for _, h := range r.Health().Routes {
		fmt.Println(h.Name, h.State)
	}
	fmt.Println(r.Check())
	// Output:
	// billing/orders/Payment new
	// loyalty/orders/Payment new
	// <nil>
}
