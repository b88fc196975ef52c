package poison_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// A message is refused, looked at, and replayed when the handler has been repaired.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	b, err := memory.Open(memory.Config{}, bus.WithLogger(nil))
	if err != nil {
		log.Fatal(err)
	}
	refused, handled := make(chan struct{}, 1), make(chan struct{})
	repaired := false
	r := router.New(b, "billing", router.Hooks(hook(refused)))
	r.HandleFunc("orders", func(_ context.Context, m *bus.Message) error {
		if !repaired {
			return bus.Permanent(errors.New("no such customer"))
		}
		fmt.Println("handled", m.ID)
		close(handled)
		return nil
	})
	over := make(chan error)
	go func() { over <- r.Run(ctx) }()
	if err := b.Publish(ctx, "orders", "an order", bus.WithID("order-1")); err != nil {
		log.Fatal(err)
	}
	<-refused

	q, err := poison.Open(ctx, b, "billing")
	if err != nil {
		log.Fatal(err)
	}
	for e, err := range q.List(ctx, poison.Filter{Class: "permanent"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Message.ID, e.Failure.Text)
	}
	repaired = true
	result, err := q.Replay(ctx, poison.Filter{}, poison.Options{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("replayed", result.Done)
	<-handled
	stop()
	if err := errors.Join(<-over, b.Close()); err != nil {
		log.Fatal(err)
	}
	// Unordered output:
	// order-1 no such customer
	// replayed 1
	// handled order-1
}
