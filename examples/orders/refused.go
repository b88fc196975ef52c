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

// refusal makes loyalty refuse a share of all orders for good, until it is repaired; then somebody replays them. The
// customers' later orders wait, so that their order is kept.
type refusal struct {
	share    float64
	repaired atomic.Bool
}

// options are for the group that refuses.
func (f *refusal) options() []router.Option {
	if f.share == 0 {
		return nil
	}
	return []router.Option{
		router.Use(bus.Around(func(ctx context.Context, call bus.Call) error {
			for m := range call.Messages() {
				if !f.repaired.Load() && chosen(m.ID, f.share) {
					return bus.Permanent(errors.New("the loyalty programme does not know this tier"))
				}
			}
			return call.Next(ctx)
		})),
		router.Policy{KeyWaits: true},
	}
}

// chosen picks a share of all ids, the same at each try.
func chosen(id string, share float64) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return float64(h.Sum32()%10_000) < share*10_000
}

// replay waits until the other services are done, tells what is in the poison queue, and replays it, as somebody does
// who has repaired the service: `millrace poison groups` and `millrace poison replay` do the same.
func (f *refusal) replay(ctx context.Context, b *bus.Bus, topic string, books *Books, orders int, stderr io.Writer) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	await := func(holds func() bool) bool {
		for !holds() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return false
			}
		}
		return true
	}
	if !await(func() bool { paid, _, sold := books.handled(); return min(paid, sold) == orders }) {
		return nil
	}
	q, err := poison.Open(ctx, b, "loyalty")
	if err != nil {
		return err
	}
	filter := poison.Filter{Topic: topic}
	groups, err := q.Groups(ctx, filter)
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
		var r poison.Result
		r, err = q.Replay(ctx, filter, poison.Options{})
		replayed += r.Done
		_, loyal, _ := books.handled()
		return err != nil || loyal == orders
	})
	fmt.Fprintf(stderr, "orders: %d were replayed\n", replayed)
	if ctx.Err() != nil { // the end
		err = nil
	}
	return err
}
