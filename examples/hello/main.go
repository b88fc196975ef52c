// Command hello is the program of the README: an order leads to a payment, by two handlers.
package main

import (
	"cmp"
	"context"
	"errors"
	"log"
	"os"
	"os/signal"

	_ "github.com/millrace-go/millrace/adapters/all" // or only the brokers that you use
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

type (
	OrderPlaced      struct{ OrderID, Customer string }
	PaymentRequested struct{ OrderID string }
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	b, err := bus.Open(ctx, cmp.Or(os.Getenv("BUS_URL"), "memory:"))
	if err != nil {
		log.Fatal(err)
	}
	r := router.New(b, "billing")
	router.On(r, "orders", func(ctx context.Context, e OrderPlaced) error {
		return bus.Emit(ctx, "payments", PaymentRequested{e.OrderID}, bus.WithKey(e.OrderID))
	})
	router.On(r, "payments", func(_ context.Context, e PaymentRequested) error {
		log.Print("asked for the payment of ", e.OrderID)
		return nil
	})
	r.Go("shop", func(ctx context.Context) error {
		if err := r.Ready(ctx); err != nil {
			return err
		}
		return b.Publish(ctx, "orders", OrderPlaced{"A-1", "Ada"}, bus.WithKey("A-1"))
	})
	err = r.Run(ctx) // returns after a full drain when ctx ends
	if err = errors.Join(err, b.Close()); err != nil {
		log.Fatal(err)
	}
}
