// Package bus is the contract of Millrace: messages, publishing, handlers, and the duties of a
// broker's driver.
//
// A service opens a [Bus] by URL and publishes typed events or raw messages; package router runs
// its handlers. The URL alone chooses the broker: memory:, sqlite:, postgres://, mysql://,
// kafka://, amqp://.
//
//	b, err := bus.Open(ctx, os.Getenv("BUS_URL"), bus.WithSource("/shop/orders"))
//	if err != nil { … }
//	defer b.Close()
//	err = b.Publish(ctx, "orders", OrderPlaced{ID: "o1"}, bus.WithKey("customer-7"))
//
// Drivers register themselves when their package is imported, as drivers of database/sql do:
//
//	import _ "github.com/millrace-go/millrace/adapters/kafka" // or adapters/all
//
// # What a publisher may rely on
//
// Publish returns nil only once the broker has made every message durable. The broker's row in
// docs/guarantees.md defines durable. Otherwise the error tells each message's fate: see
// [PublishError] and [IsDefinite].
//
// # What a handler may rely on
//
// Messages of a topic with equal non-empty keys are handled one at a time, in publish order, also
// while one of them is retried. Different keys are handled concurrently. The router settles a
// message once its handler has returned nil and its emitted messages ([Emit]) are durable:
// at-least-once delivery.
//
// The package needs the standard library only.
package bus
