// Package aggregate decides commands on states that are made of events. A state is a plain struct
// with a method Apply; a decision is a function of the state that returns events, or refuses. The
// events are in a store of package eventstore.
//
//	var Orders = aggregate.Define[Order]("order", OrderEvents, aggregate.Snapshots(200, 1), aggregate.Cached(10_000))
//
//	orders := Orders.In(store)
//	done, err := orders.Do(ctx, "7", func(o Order) ([]OrderEvent, error) { … })
//	order, version, err := orders.Load(ctx, "7")
//
// Commands of one aggregate that come together in one process are decided one after the other, and
// appended together. Commands of other processes are seen as conflicts of the append: then the
// state is read on, and the decisions are made again.
package aggregate
