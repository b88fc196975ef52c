package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// A message with a delay is handled when it is due. The messages of its key do not wait for it.
func ExampleWithDelay() {
	ctx, stop := context.WithCancel(context.Background())
	b, err := bus.Open(ctx, "memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	r := router.New(b, "mail")
	router.On(r, "mail", func(_ context.Context, text string) error {
		fmt.Println(text)
		if text == "how was it?" {
			stop()
		}
		return nil
	})
	if err := b.Publish(ctx, "mail", "how was it?", bus.WithKey("ada"), bus.WithDelay(50*time.Millisecond)); err != nil {
		log.Fatal(err)
	}
	if err := b.Publish(ctx, "mail", "thank you", bus.WithKey("ada")); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// thank you
	// how was it?
}

// While a service that the handler needs is away, no message is handled and no try is counted.
func ExampleUnavailable() {
	ctx, stop := context.WithCancel(context.Background())
	b, err := bus.Open(ctx, "memory:", bus.WithLogger(nil))
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	calls := 0
	r := router.New(b, "billing")
	router.On(r, "payments", func(ctx context.Context, order string) error {
		if calls++; calls == 1 {
			return bus.Unavailable(errors.New("the bank is closed"), 20*time.Millisecond)
		}
		fmt.Println(order, "is try", bus.DeliveryFrom(ctx).Attempt)
		stop()
		return nil
	})
	if err := b.Publish(ctx, "payments", "o1"); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: o1 is try 1
}
