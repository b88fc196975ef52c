// Command hello is the program of the README: a handler that asks for a payment for each order.
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
	err = r.Run(ctx) // returns after a full drain when ctx ends
	if err = errors.Join(err, b.Close()); err != nil {
		log.Fatal(err)
	}
}
