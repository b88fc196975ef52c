package conformance_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// parkingDefects are defects in the handling of parked messages.
var parkingDefects = []defect{
	{name: "delay: it gets lost on the way", make: func() *broken {
		return edit(func(m *bus.Message) {
			m.Headers = slices.DeleteFunc(m.Headers, func(h bus.Header) bool { return h.Name == bus.HeaderDeliverAt })
		})
	}, noticed: []string{"delay/publish"}},
	{name: "delay: cancellations get lost", make: func() *broken {
		return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			return d.Publish(ctx, topic, slices.DeleteFunc(slices.Clone(msgs), func(m *bus.Message) bool { return m.Type == bus.TypeCancellation }))
		}}
	}, noticed: []string{"delay/cancel"}, long: true},
	{name: "parking: what waits slows down what comes", make: func() *broken {
		return whileSomethingWaits(func(n int) { time.Sleep(time.Duration(n) * 100 * time.Microsecond) })
	}, noticed: []string{"load/a-key-waits", "load/a-key-waits-elsewhere", "load/many-keys-wait"}, long: true},
	{name: "parking: what comes takes memory while something waits", make: func() *broken {
		var kept [][]byte
		return whileSomethingWaits(func(n int) { kept = append(kept, make([]byte, n<<10)) })
	}, noticed: []string{"load/a-key-waits"}, long: true},
	{name: "settle: what is parked stays", make: func() *broken {
		return &broken{settle: func(s bus.Source, ctx context.Context, tokens []bus.Token) error {
			return s.Settle(ctx, slices.DeleteFunc(slices.Clone(tokens), func(t bus.Token) bool { return t.Parked }))
		}}
	}, noticed: []string{"delay/cancel", "poison/replay-at-most-once"}, long: true},
	{name: "parking: due times are lost", make: dueless, noticed: []string{"delay/retry", "parking/store"}},
	{name: "parking: due times are lost, and it takes long", make: dueless, noticed: []string{"delay/many-keys"}, long: true},
	{name: "parking: keys wait for messages that are free", make: func() *broken {
		return &broken{park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			for i := range ps {
				ps[i].Delayed = false
			}
			return s.Park(ctx, ps)
		}}
	}, noticed: []string{"parking/store"}},
	{name: "parking: tries are forgotten", make: tryless, noticed: []string{"parking/store", "poison/key-waits-elsewhere"}},
	{name: "parking: tries are forgotten, and it takes long", make: tryless, noticed: []string{"ways/exactly-once"}, long: true},
	{name: "parking: what is parked a second time is lost", make: func() *broken {
		return &broken{park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			var again []bus.Token
			for i := range ps {
				if ps[i].Token.Parked {
					again = append(again, ps[i].Token)
				}
			}
			return errors.Join(s.Park(ctx, ps), s.Settle(ctx, again))
		}}
	}, noticed: []string{"ways/at-least-once"}, long: true},
	{name: "parking: nobody says that a token is stale", make: func() *broken {
		return &broken{park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			if err := s.Park(ctx, ps); !errors.Is(err, bus.ErrStale) {
				return err
			}
			return nil
		}}
	}, noticed: []string{"parking/stale"}},
	{name: "inject: a group that does not exist will do", make: func() *broken {
		return &broken{inject: func(d driver.Injector, ctx context.Context, topic, group string, ps []driver.Parking) error {
			if err := d.Inject(ctx, topic, group, ps); !errors.Is(err, bus.ErrNotFound) {
				return err
			}
			return nil
		}}
	}, noticed: []string{"parking/inject"}},
	{name: "inject: all groups are given what one is to have", make: func() *broken {
		return &broken{inject: func(d driver.Injector, ctx context.Context, topic, _ string, ps []driver.Parking) error {
			for i := range ps {
				if err := d.(driver.Driver).Publish(ctx, topic, []*bus.Message{ps[i].Message}); err != nil {
					return err
				}
			}
			return nil
		}}
	}, noticed: []string{"poison/replay"}},
	{name: "inject: what waits is given back as something new", make: func() *broken {
		return &broken{inject: func(d driver.Injector, ctx context.Context, topic, group string, ps []driver.Parking) error {
			for i := range ps {
				ps[i].Token = bus.Token{}
			}
			return d.Inject(ctx, topic, group, ps)
		}}
	}, noticed: []string{"poison/key-waits"}},
	{name: "inject: the last message is forgotten", make: func() *broken {
		return &broken{inject: func(d driver.Injector, ctx context.Context, topic, group string, ps []driver.Parking) error {
			return d.Inject(ctx, topic, group, ps[:len(ps)-1])
		}}
	}, noticed: []string{"parking/inject"}},
}

// dueless is a driver that forgets when parked messages are due.
func dueless() *broken {
	return &broken{park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
		for i := range ps {
			ps[i].Due = time.Time{}
		}
		return s.Park(ctx, ps)
	}}
}

// tryless is a driver that forgets how often parked messages were tried. It says that it has
// transactions.
func tryless() *broken {
	return &broken{
		caps: func(c bus.Capabilities) bus.Capabilities { c.Transactions = true; return c },
		park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			for i := range ps {
				ps[i].Attempt, ps[i].Failure = 1, nil
			}
			return s.Park(ctx, ps)
		},
	}
}

// whileSomethingWaits does something for each n messages received while messages wait in the same
// topic.
func whileSomethingWaits(do func(n int)) *broken {
	var waits atomic.Bool
	return &broken{
		park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			waits.Store(true)
			return s.Park(ctx, ps)
		},
		receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
			n, err := s.Receive(ctx, dst, maxBytes)
			if waits.Load() && n > 0 && strings.HasPrefix(dst[0].Topic, "conf-waiting-") {
				do(n)
			}
			return n, err
		},
	}
}
