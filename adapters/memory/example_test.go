package memory_test

import (
	"context"
	"fmt"
	"log"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/router"
)

// A bus in memory needs no broker. A late group gets the earlier messages.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	b, err := memory.Open(memory.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	if err := b.Publish(ctx, "orders", "o1"); err != nil {
		log.Fatal(err)
	}
	r := router.New(b, "archive")
	router.On(r, "orders", func(_ context.Context, order string) error {
		fmt.Println("archived", order)
		stop()
		return nil
	})
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: archived o1
}
