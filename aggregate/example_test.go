package aggregate_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/aggregate"
	"github.com/millrace-go/millrace/eventstore"
)

type (
	OrderEvent   interface{ EventType() string }
	OrderCreated struct{ ID, Customer string }
	ItemAdded    struct {
		Product string
		Cents   int64
	}
	OrderConfirmed struct{ Cents int64 }
)

func (OrderCreated) EventType() string   { return "shop.order.created.v1" }
func (ItemAdded) EventType() string      { return "shop.order.item-added.v1" }
func (OrderConfirmed) EventType() string { return "shop.order.confirmed.v1" }

// Order is a plain state.
type Order struct {
	ID        string
	Cents     int64
	Confirmed bool
}

// Apply changes the state. It cannot refuse: it has happened.
func (o *Order) Apply(e OrderEvent) {
	switch e := e.(type) {
	case OrderCreated:
		o.ID = e.ID
	case ItemAdded:
		o.Cents += e.Cents
	case OrderConfirmed:
		o.Confirmed = true
	}
}

var (
	events = eventstore.TypesOf[OrderEvent](OrderCreated{}, ItemAdded{}, OrderConfirmed{})
	orders = aggregate.Define[Order]("order", events, aggregate.Snapshots(200, 1), aggregate.Cached(10_000))

	errStatus = errors.New("the order is confirmed, or does not exist")
)

// The rules are functions of the state.

func create(id, customer string) aggregate.Decision[Order, OrderEvent] {
	return func(o Order) ([]OrderEvent, error) {
		if o.ID != "" {
			return nil, nil // again: nothing happens
		}
		return []OrderEvent{OrderCreated{id, customer}}, nil
	}
}

func add(product string, cents int64) aggregate.Decision[Order, OrderEvent] {
	return func(o Order) ([]OrderEvent, error) {
		if o.ID == "" || o.Confirmed {
			return nil, errStatus
		}
		return []OrderEvent{ItemAdded{product, cents}}, nil
	}
}

func confirm(o Order) ([]OrderEvent, error) {
	if o.ID == "" || o.Confirmed || o.Cents == 0 {
		return nil, errStatus
	}
	return []OrderEvent{OrderConfirmed{o.Cents}}, nil
}

// openOrders has a repository in memory. Call end when it is done with.
func openOrders(ctx context.Context) (repository *aggregate.Repository[Order, OrderEvent], end func()) {
	b, err := memory.Open(memory.Config{})
	if err != nil {
		log.Fatal(err)
	}
	store, err := eventstore.Open(ctx, b, "shop-events")
	if err != nil {
		log.Fatal(err)
	}
	return orders.In(store), func() { _ = b.Close() }
}

// Several rules are one append: all of it happens, or nothing.
func Example() {
	ctx := context.Background()
	repository, end := openOrders(ctx)
	defer end()
	done, err := repository.Do(ctx, "7", create("7", "Ada"), add("tea", 299), add("pot", 4999), confirm)
	fmt.Println("version", done.Version, err)

	_, err = repository.Do(ctx, "7", add("cup", 599))
	fmt.Println(err)
	_, err = repository.DoAt(ctx, "7", 3, confirm) // what a page with If-Match: 3 asks for
	fmt.Println(err)

	order, version, err := repository.Load(ctx, "7")
	fmt.Printf("%+v at version %d, %v\n", order, version, err)
	for e, err := range repository.History(ctx, "7") {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %+v\n", e.EventType(), e)
	}
	// Output:
	// version 4 <nil>
	// the order is confirmed, or does not exist
	// stream "order-7" has version 4: expected version 3
	// {ID:7 Cents:5298 Confirmed:true} at version 4, <nil>
	// shop.order.created.v1 {ID:7 Customer:Ada}
	// shop.order.item-added.v1 {Product:tea Cents:299}
	// shop.order.item-added.v1 {Product:pot Cents:4999}
	// shop.order.confirmed.v1 {Cents:5298}
}

type AddItem struct {
	Order, Product string
	Cents          int64
}

func (c AddItem) EventKey() string { return c.Order }

func (c AddItem) Decide(o Order) ([]OrderEvent, error) { return add(c.Product, c.Cents)(o) }

// A command with Decide and EventKey is its own handler.
func ExampleHandle() {
	ctx := context.Background()
	repository, end := openOrders(ctx)
	defer end()
	if _, err := repository.Do(ctx, "7", create("7", "Ada")); err != nil {
		log.Fatal(err)
	}
	handle := aggregate.Handle[AddItem](repository)
	done, err := handle(ctx, AddItem{"7", "tea", 299})
	fmt.Println("version", done.Version, err)
	// Output:
	// version 2 <nil>
}

// The state as it was at a time is made of the events up to then.
func ExampleRepository_As() {
	ctx := context.Background()
	repository, end := openOrders(ctx)
	defer end()
	if _, err := repository.Do(ctx, "7", create("7", "Ada"), add("tea", 299)); err != nil {
		log.Fatal(err)
	}
	noon := time.Now()
	if _, err := repository.Do(ctx, "7", confirm); err != nil {
		log.Fatal(err)
	}
	before, version, err := repository.As(ctx, "7", noon)
	fmt.Printf("%+v at version %d, %v\n", before, version, err)
	// Output:
	// {ID:7 Cents:299 Confirmed:false} at version 2, <nil>
}
