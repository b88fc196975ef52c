// Package router runs handlers over a bus. It pulls messages, keeps the order of keys and calls
// handlers concurrently. It retries, poisons messages that cannot be handled, settles in batches,
// and drains at the end.
//
//	r := router.New(b, "billing")
//	router.On(r, "orders", func(ctx context.Context, e OrderPlaced) error {
//		return bus.Emit(ctx, "payments", PaymentRequested{e.OrderID}, bus.WithKey(e.OrderID))
//	})
//	err := r.Run(ctx) // returns after a full drain when ctx ends
//
// # Order and concurrency
//
// Messages of one topic with equal keys are handled one at a time, in publish order. Everything
// else runs concurrently, up to [Workers] calls at once, on every broker: concurrency does not
// depend on the number of Kafka partitions or queues. While a message waits for its next try, only
// its key waits with it.
//
// # Failure
//
// A handler's error goes through its [Policy]: the message is retried by a schedule of delays, then
// put into the group's poison queue with the reason. Panics are errors. A message that cannot be
// decoded goes to the poison queue at once.
//
// # Bounds
//
// Messages received and not settled are bounded by number and bytes ([InFlight]); a slow handler
// slows the intake down.
package router
