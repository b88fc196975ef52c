package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	_ "github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

type OrderPlaced struct {
	ID, Customer string
	Cents        int64
}

// The wire name and the key belong to the type: a rename in Go changes neither.
func (OrderPlaced) EventType() string  { return "shop.order.placed" }
func (o OrderPlaced) EventKey() string { return o.Customer }

func Example() {
	ctx := context.Background()
	b, err := bus.Open(ctx, "memory:", bus.WithSource("/shop")) // or kafka://…, amqp://…, postgres://…
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	done := make(chan bool)
	r := router.New(b, "billing")
	router.On(r, "orders", func(_ context.Context, o OrderPlaced) error {
		fmt.Println("bill", o.Customer, "for", o.Cents)
		close(done)
		return nil
	})
	ctx, stop := context.WithCancel(ctx)
	go func() {
		<-done
		stop() // Run drains, then returns
	}()
	if err := b.Publish(ctx, "orders", OrderPlaced{"o1", "ada", 1299}); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: bill ada for 1299
}

func ExampleOpen() {
	_, err := bus.Open(context.Background(), "memory:?capcity=10")
	fmt.Println(err)
	// Output: bus: URL memory:?capcity=10: invalid: parameter "capcity" is unknown: want one of bytes, capacity, retain
}

// Each message of a call has its own outcome.
func ExamplePublishError() {
	ctx := context.Background()
	b, err := bus.Open(ctx, "memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	err = b.PublishMessages(ctx, "orders",
		&bus.Message{ID: "1"},
		&bus.Message{ID: "2", Headers: bus.Headers{{Name: "ce_id", Value: "mine"}}})
	if failed, ok := errors.AsType[*bus.PublishError](err); ok {
		for i, err := range failed.Errs {
			fmt.Println(i, "published:", err == nil, "definitely not:", err != nil && bus.IsDefinite(err))
		}
	}
	// Output:
	// 0 published: true definitely not: false
	// 1 published: false definitely not: true
}

// What a handler emits is published if it succeeds, before its message is settled.
func ExampleEmit() {
	type Shipped struct{ Order string }
	ctx, stop := context.WithCancel(context.Background())
	b, err := bus.Open(ctx, "memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	r := router.New(b, "shipping")
	router.On(r, "orders", func(ctx context.Context, o OrderPlaced) error {
		return bus.Emit(ctx, "shipments", Shipped{o.ID}, bus.WithKey(o.Customer))
	})
	router.On(r, "shipments", func(ctx context.Context, s Shipped) error {
		fmt.Println("shipped", s.Order, "for", bus.DeliveryFrom(ctx).Key)
		stop()
		return nil
	})
	if err := b.Publish(ctx, "orders", OrderPlaced{"o1", "ada", 1299}); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: shipped o1 for ada
}

// A middleware that works around single messages and batches.
func ExampleAround() {
	count := bus.Around(func(ctx context.Context, c bus.Call) error {
		err := c.Next(ctx)
		fmt.Println(c.Len(), "messages, error:", err)
		return err
	})
	h := count(bus.HandlerFunc(func(context.Context, *bus.Message) error { return errors.New("no stock") }))
	_ = h.Handle(context.Background(), &bus.Message{})
	// Output: 1 messages, error: no stock
}
