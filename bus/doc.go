// Package bus is the contract of Millrace: messages, publishing, handlers, and what a broker's driver must do.
//
// A service opens a [Bus] by URL and publishes typed events or raw messages; package router runs its handlers.
// The URL alone decides where they run: memory:, sqlite:, postgres://, mysql://, kafka://, amqp://.
//
//	b, err := bus.Open(ctx, os.Getenv("BUS_URL"), bus.WithSource("/shop/orders"))
//	if err != nil { … }
//	defer b.Close()
//	err = b.Publish(ctx, "orders", OrderPlaced{ID: "o1"}, bus.WithKey("customer-7"))
//
// Drivers register themselves when their package is imported, as those of database/sql do:
//
//	import _ "github.com/millrace-go/millrace/adapters/kafka" // or adapters/all
//
// # What a publisher may rely on
//
// Publish returns nil only once the broker has made every message durable in the sense of its row in
// docs/guarantees.md. Otherwise the error tells each message's fate: see [PublishError] and [IsDefinite].
//
// # What a handler may rely on
//
// Messages of a topic with equal non-empty keys are handled one at a time, in the order in which they were
// published, also while one of them is retried. Different keys are handled concurrently. A message is settled once,
// after its handler returned nil and what it emitted ([Emit]) is durable: at-least-once delivery.
//
// The package needs the standard library only.
package bus
