package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/router"
)

type (
	OrderCreated struct{ Customer string }
	ItemAdded    struct {
		Product string
		Cents   int64
	}
)

func (OrderCreated) EventType() string { return "shop.order.created.v1" }
func (ItemAdded) EventType() string    { return "shop.order.item-added.v2" }

// openStore opens a store in memory; sqlite:shop.db, postgres://… and mysql://… with bus.Open are
// the same.
func openStore() (*bus.Bus, *eventstore.Store) {
	b, err := memory.Open(memory.Config{})
	if err != nil {
		log.Fatal(err)
	}
	store, err := eventstore.Open(context.Background(), b, "shop-events")
	if err != nil {
		log.Fatal(err)
	}
	return b, store
}

// A stream is written at a version that somebody has seen, and read from its beginning.
func Example() {
	ctx := context.Background()
	b, store := openStore()
	defer b.Close()
	done, err := store.Append(ctx, "order-7", eventstore.New, OrderCreated{"Ada"}, ItemAdded{"tea", 299})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("version", done.Version)

	_, err = store.Append(ctx, "order-7", eventstore.At(1), ItemAdded{"pot", 4999})
	if c, ok := errors.AsType[*eventstore.Conflict](err); ok {
		fmt.Println("somebody was quicker: version", c.Actual)
	}
	for e, err := range store.Read(ctx, "order-7", 0) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Version, e.Type, string(e.Payload))
	}
	// Output:
	// version 2
	// somebody was quicker: version 2
	// 1 shop.order.created.v1 {"Customer":"Ada"}
	// 2 shop.order.item-added.v2 {"Product":"tea","Cents":299}
}

// Several streams are written all or nothing.
func ExampleStore_AppendAll() {
	ctx := context.Background()
	b, store := openStore()
	defer b.Close()
	_, err := store.AppendAll(ctx,
		eventstore.To("order-7", eventstore.New, OrderCreated{"Ada"}),
		eventstore.To("order-8", eventstore.Exists, ItemAdded{"pot", 4999}))
	fmt.Println(err)
	for e, err := range store.All(ctx, 0) {
		fmt.Println("not reached:", e.Stream, err)
	}
	// Output:
	// memory: append "shop-events": stream "order-8" has version 0: expected events
}

// An append whose outcome is not known is repeated: the same ids at the same version.
func ExampleStore_Append_repeated() {
	ctx := context.Background()
	b, store := openStore()
	defer b.Close()
	m := &bus.Message{ID: "payment-4711", Type: "shop.order.paid.v1", Payload: []byte("{}")}
	for range 2 {
		done, err := store.Append(ctx, "order-7", eventstore.New, m)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("version", done.Version, "repeated", done.Repeated)
	}
	// Output:
	// version 1 repeated false
	// version 1 repeated true
}

// All streams have one order. Follow goes on with the events that come.
func ExampleStore_Follow() {
	ctx := context.Background()
	b, store := openStore()
	defer b.Close()
	for _, stream := range []string{"order-7", "order-8"} {
		if _, err := store.Append(ctx, stream, eventstore.New, OrderCreated{"Ada"}); err != nil {
			log.Fatal(err)
		}
	}
	for e, err := range store.Follow(ctx, 0) { // or after the last position that was handled
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Position, e.Stream, e.Version)
		if e.Stream == "order-9" {
			break
		}
		if e.Stream == "order-8" {
			if _, err := store.Append(ctx, "order-9", eventstore.New, OrderCreated{"Bob"}); err != nil {
				log.Fatal(err)
			}
		}
	}
	// Output:
	// 1 order-7 1
	// 2 order-8 1
	// 3 order-9 1
}

// A router's group receives the events of the store's topic.
func ExampleStore_Recorded() {
	ctx, stop := context.WithCancel(context.Background())
	b, store := openStore()
	defer b.Close()
	r := router.New(b, "mailer")
	r.HandleFunc(store.Topic(), func(_ context.Context, m *bus.Message) error {
		e, err := store.Recorded(m)
		if err != nil {
			return err
		}
		fmt.Println(e.Stream, e.Version, e.Type)
		stop()
		return nil
	})
	if _, err := store.Append(ctx, "order-7", eventstore.New, OrderCreated{"Ada"}); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// order-7 1 shop.order.created.v1
}

type OrderEvent interface{ EventType() string }

type itemAddedV1 struct {
	Name  string
	Price float64
}

func (itemAddedV1) EventType() string { return "ItemAdded" } // as the first version of the program called it

// A family names the events of a stream, and what becomes of those that earlier versions of the
// program have stored.
func ExampleTypes() {
	types := eventstore.TypesOf[OrderEvent](OrderCreated{}, ItemAdded{}).With(
		eventstore.Upcast(func(e itemAddedV1) (ItemAdded, error) {
			return ItemAdded{strings.ToLower(e.Name), int64(e.Price*100 + 0.5)}, nil
		}),
		eventstore.Renamed[OrderCreated]("OrderOpened"),
		eventstore.Ignored("OrderViewed"))
	if err := types.Check(); err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	b, store := openStore()
	defer b.Close()
	_, err := store.Append(ctx, "order-7", eventstore.New,
		&bus.Message{Type: "OrderOpened", Payload: []byte(`{"Customer":"Ada"}`)},
		&bus.Message{Type: "OrderViewed"},
		itemAddedV1{"Tea", 2.99})
	if err != nil {
		log.Fatal(err)
	}
	for stored, err := range store.Read(ctx, "order-7", 0) {
		if err != nil {
			log.Fatal(err)
		}
		events, err := types.Decode(stored)
		if err != nil {
			log.Fatal(err)
		}
		for _, e := range events {
			fmt.Printf("%T %+v\n", e, e)
		}
	}
	// Output:
	// eventstore_test.OrderCreated {Customer:Ada}
	// eventstore_test.ItemAdded {Product:tea Cents:299}
}
