package router_test

import (
	"context"
	"fmt"
	"log"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

type (
	orderPlaced struct{ ID string }
	orderViewed struct{ ID string }
	orderRated  struct{ ID string }
)

func (orderPlaced) EventType() string { return "order.placed" }
func (orderViewed) EventType() string { return "order.viewed" }
func (orderRated) EventType() string  { return "order.rated" }

// seen is a hook that notes the types of skipped messages.
type seen struct{ types []string }

func (s *seen) Skipped(_ context.Context, d bus.Delivery) { s.types = append(s.types, d.Type) }

// handle runs a router of the group "billing", which wants placed orders only, until it has handled
// the last message of a topic with three types.
func handle(opts ...router.RootOption) {
	b, err := memory.Open(memory.Config{}, bus.WithLogger(nil))
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	ctx, stop := context.WithCancel(context.Background())
	hook := &seen{}
	r := router.New(b, "billing", append(opts, router.Hooks(hook))...)
	router.On(r, "orders", func(_ context.Context, o orderPlaced) error {
		fmt.Println("billed", o.ID)
		if o.ID == "2" {
			stop()
		}
		return nil
	})
	for _, event := range []any{orderPlaced{"1"}, orderViewed{"1"}, orderRated{"1"}, orderPlaced{"2"}} {
		if err := b.Publish(ctx, "orders", event, bus.WithKey("ada")); err != nil {
			log.Fatal(err)
		}
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("skipped", hook.types, "and poisoned", r.Health().Routes[0].Unknown)
}

// The group does not want views. A type that it does not name, and that no handler takes, goes to
// the poison queue: the next version of the group may have a handler for it.
func ExampleSkip() {
	handle(router.Skip("order.viewed"))
	// Output:
	// billed 1
	// billed 2
	// skipped [order.viewed] and poisoned 1
}

// The group wants some types of many. The log warns of each other type once.
func ExampleSkipUnknown() {
	handle(router.SkipUnknown())
	// Output:
	// billed 1
	// billed 2
	// skipped [order.viewed order.rated] and poisoned 0
}
