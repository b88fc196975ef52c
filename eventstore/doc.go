// Package eventstore keeps streams of events for ever, in a topic of a bus whose broker is a
// database: PostgreSQL, MySQL/MariaDB, SQLite, or memory. An event is a message of that topic, its
// key is its stream, and it has a version there. Whatever works on a topic works on a store:
// routers, exactly once with outbox.OnceInBus, lag, the poison queue.
//
//	store, err := eventstore.Open(ctx, b, "shop-events")
//	done, err := store.Append(ctx, "order-7", eventstore.New, Created{…}, ItemAdded{…})
//	for e, err := range store.Read(ctx, "order-7", 0) { … }
//
// # What holds
//
// An append is all or nothing, also over several streams. Versions of a stream are dense, from 1
// on. An append whose stream is not as expected is a [Conflict], which names the actual version.
// Success means that the events are committed, as durable as what the bus publishes.
//
// An error for which bus.IsDefinite is false leaves open whether the events are there. Append the
// same messages, with ids of their own, at the same version again: if they are there, the answer is
// [Appended.Repeated].
//
// Positions order all events of a store; they have gaps. [Store.All], [Store.Follow] and routers'
// groups pass over no event, however late its transaction commits. Groups see each stream in its
// order; one shard ([Shards]) has them see all events in one order.
//
// Rules on states that are made of events are in package aggregate.
package eventstore
