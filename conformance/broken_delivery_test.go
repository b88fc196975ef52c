package conformance_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// deliveryDefects are defects in receiving and settling, and in the life of sources.
var deliveryDefects = []defect{
	{name: "two messages of a key are swapped", make: func() *broken {
		return filter(func(dst []bus.Delivery) int {
			first := map[string]int{}
			for i := range dst {
				if j, ok := first[dst[i].Key]; ok {
					dst[i], dst[j] = dst[j], dst[i]
					break
				}
				first[dst[i].Key] = i
			}
			return len(dst)
		})
	}, noticed: []string{"order/keys", "order/slow-key-delays-nobody", "bounds/receive"}},
	{name: "deliveries are lost on the way out", make: func() *broken {
		var n atomic.Int64
		return filter(func(dst []bus.Delivery) int {
			kept := 0
			for _, d := range dst {
				if n.Add(1)%7 != 0 {
					dst[kept] = d
					kept++
				}
			}
			return kept
		})
	}, noticed: []string{"round-trip/fields", "groups/latest", "lifecycle/drain"}},
	{name: "records that cannot be decoded stop the source", make: func() *broken {
		return &broken{receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
			n, err := s.Receive(ctx, dst[:1], maxBytes)
			if n == 1 && (strings.HasPrefix(dst[0].ContentType, "image/") || dst[0].Type == "typeC") {
				return 0, errors.New("cannot decode")
			}
			return n, err
		}}
	}, noticed: []string{"failure/undecodable", "types/unknown"}},
	{name: "receive: the bounds are not kept", make: func() *broken {
		return &broken{receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, _ int) (int, error) {
			return s.Receive(ctx, dst, 1<<40)
		}}
	}, noticed: []string{"bounds/receive"}},
	{name: "receive: does not end with its context", make: func() *broken {
		return &broken{receive: func(s bus.Source, _ context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
			return s.Receive(context.Background(), dst, maxBytes)
		}}
	}, noticed: []string{"lifecycle/receive-ends"}},
	{name: "settle: does nothing", make: func() *broken {
		return &broken{settle: func(bus.Source, context.Context, []bus.Token) error { return nil }}
	}, noticed: []string{"lifecycle/drain", "lifecycle/finished-beyond-unfinished", "members/stale-settle", "members/leave-and-join", "failure/at-most-once", "types/skip"}},
	{name: "settle: everything received is settled at once", make: func() *broken {
		return &broken{receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
			n, err := s.Receive(ctx, dst, maxBytes)
			for i := range n {
				_ = s.Settle(ctx, []bus.Token{dst[i].Token})
			}
			return n, err
		}}
	}, noticed: []string{"lifecycle/drain", "lifecycle/finished-beyond-unfinished", "failure/healthy-at-shutdown", "members/stale-settle", "members/leave-and-join"}},
	{name: "settle: stale tokens are no error", make: func() *broken {
		return &broken{settle: func(s bus.Source, ctx context.Context, tokens []bus.Token) error {
			_ = s.Settle(ctx, tokens)
			return nil
		}}
	}, noticed: []string{"members/stale-settle"}},
	{name: "lanes are not assigned before they deliver", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			return d.Subscribe(ctx, s, unassigned{o})
		}}
	}, noticed: []string{"bounds/receive", "types/routing", "failure/exhausted", "lifecycle/no-goroutine-left"}},
	{name: "latest begins at the start", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			s.Start = bus.Earliest
			return d.Subscribe(ctx, s, o)
		}}
	}, noticed: []string{"groups/latest", "groups/start-at"}},
	{name: "a durable bus forgets", make: func() *broken {
		return &broken{caps: func(c bus.Capabilities) bus.Capabilities { c.Durable = true; return c }}
	}, noticed: []string{"lifecycle/restart"}},
	{name: "close: says that it failed", make: func() *broken {
		return &broken{shut: func(d driver.Driver, ctx context.Context) error {
			return errors.Join(d.Close(ctx), errors.New("failed"))
		}}
	}, noticed: []string{"lifecycle/concurrent-close"}},
	{name: "a goroutine is left", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			go func() { <-leaked }()
			return d.Subscribe(ctx, s, o)
		}}
	}, noticed: []string{"lifecycle/no-goroutine-left"}},
	{name: "groups share what each should have", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			s.Group = "one"
			return d.Subscribe(ctx, s, o)
		}}
	}, noticed: []string{"groups/fan-out", "groups/late"}},
}

// leaked ends the goroutines that a defect left, at the end of all tests.
var leaked = make(chan struct{})

// unassigned keeps assignments from the router.
type unassigned struct{ bus.LaneObserver }

func (unassigned) Assigned([]bus.Lane) {}
