package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// refusal makes loyalty refuse a share of all orders for good, until it is repaired; then somebody
// replays them. The customers' later orders wait, so that their order is kept.
type refusal struct {
	share    float64
	repaired atomic.Bool
}

// options are for the group that refuses.
func (f *refusal) options() []router.Option {
	if f.share == 0 {
		return nil
	}
	return []router.Option{router.Policy{KeyWaits: true}}
}

// around is the handler while it is not repaired.
func (f *refusal) around(handle func(context.Context, OrderPlaced) error) func(context.Context, OrderPlaced) error {
	return func(ctx context.Context, o OrderPlaced) error {
		if !f.repaired.Load() && f.chosen(o) {
			return bus.Permanent(errors.New("the loyalty programme does not know this tier"))
		}
		return handle(ctx, o)
	}
}

// chosen picks a share of all orders, the same at each try and in each run.
func (f *refusal) chosen(o OrderPlaced) bool {
	h := fnv.New32a()
	fmt.Fprint(h, o.Number)
	return float64(h.Sum32()%10_000) < f.share*10_000
}

// refused counts the orders that loyalty has refused once it has come to all of them. It refuses
// the next order of each customer with any left; the later orders wait. all is false if loyalty has
// not come so far.
func (f *refusal) refused(b *Books, orders []OrderPlaced) (n int, all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := map[string]bool{}
	for _, o := range orders {
		if a := b.Customers[o.Customer]; seen[o.Customer] || a != nil && o.Nth <= a.Orders {
			continue
		}
		if !f.chosen(o) {
			return 0, false
		}
		seen[o.Customer] = true
		n++
	}
	return n, true
}

// replay waits until the services can do no more, prints the poison queue, and replays
// it. An operator does the same after repairing the service, with `millrace poison groups` and
// `millrace poison replay`.
func (f *refusal) replay(ctx context.Context, b *bus.Bus, topic string, books *Books, orders []OrderPlaced, stderr io.Writer) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	await := func(holds func() bool) {
		for !holds() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
	q, err := poison.Open(ctx, b, "loyalty")
	filter := poison.Filter{Topic: topic}
	await(func() bool {
		if err != nil {
			return true
		}
		paid, _, sold := books.handled()
		n, all := f.refused(books, orders)
		if min(paid, sold) < len(orders) || !all {
			return false
		}
		var there int
		there, err = q.Count(ctx, filter)
		return there == n
	})
	var groups []poison.Summary
	if err == nil {
		groups, err = q.Summaries(ctx, filter)
	}
	if ctx.Err() != nil { // the end
		return nil
	}
	if err != nil {
		return err
	}
	for _, g := range groups {
		fmt.Fprintf(stderr, "orders: %s refused %d (%s): %s\n", g.Handler, g.Count, g.Class, g.Text)
	}
	f.repaired.Store(true)
	replayed := 0
	await(func() bool {
		// To its end, because the last order of all may be among them.
		var r poison.Result
		r, err = q.Replay(context.WithoutCancel(ctx), filter, poison.Options{})
		replayed += r.Done
		_, loyal, _ := books.handled()
		return err != nil || loyal == len(orders)
	})
	fmt.Fprintf(stderr, "orders: %d were replayed\n", replayed)
	if ctx.Err() != nil { // the end
		err = nil
	}
	return err
}
