package conformance_test

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// fullLaneDefects are defects of drivers whose lanes have room for a few parked messages only.
var fullLaneDefects = []defect{
	{name: "full lane: it keeps all lanes from parking", make: func() *broken {
		return narrow(func(ctx context.Context, s driver.ParkingSource, fitting, full []driver.Parking) (refuse bool, err error) {
			if len(full) > 0 {
				return false, errFull
			}
			return false, s.Park(ctx, fitting)
		})
	}, noticed: []string{"parking/full-lane"}},
	{name: "full lane: what does not fit is lost", make: func() *broken {
		return narrow(func(ctx context.Context, s driver.ParkingSource, fitting, full []driver.Parking) (refuse bool, err error) {
			for _, p := range full {
				_ = s.Settle(ctx, []bus.Token{p.Token})
			}
			return true, s.Park(ctx, fitting)
		})
	}, noticed: []string{"parking/full-lane"}},
	{name: "full lane: what does not fit takes the place of what is there", make: func() *broken {
		var last sync.Map // token by lane
		return narrow(func(ctx context.Context, s driver.ParkingSource, fitting, full []driver.Parking) (refuse bool, err error) {
			err = s.Park(ctx, fitting)
			for _, p := range fitting {
				last.Store(p.Lane, p.Token)
			}
			for i, p := range full {
				token, _ := last.Load(p.Lane)
				_ = s.Settle(ctx, []bus.Token{p.Token})
				full[i].Token = token.(bus.Token)
			}
			return false, errors.Join(err, s.Park(ctx, full))
		})
	}, noticed: []string{"parking/full-lane"}},
	{name: "full lane: Park waits for room", make: func() *broken {
		return narrow(func(ctx context.Context, s driver.ParkingSource, fitting, full []driver.Parking) (refuse bool, err error) {
			if err := s.Park(ctx, fitting); err != nil || len(full) == 0 {
				return false, err
			}
			<-ctx.Done()
			return false, ctx.Err()
		})
	}, noticed: []string{"parking/full-lane"}},
	{name: "full lane: nobody is told", make: func() *broken {
		return narrow(func(ctx context.Context, s driver.ParkingSource, fitting, _ []driver.Parking) (refuse bool, err error) {
			return false, s.Park(ctx, fitting) // the others look like messages of lanes that have moved
		})
	}, noticed: []string{"parking/full-lane"}},
	{name: "full lane: it delivers nothing while something is unsettled", make: func() *broken {
		b := narrow(wholeLane)
		var mu sync.Mutex
		refused := false
		park := b.park
		b.park = func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			err := park(s, ctx, ps)
			mu.Lock()
			defer mu.Unlock()
			refused = refused || err != nil && strings.HasPrefix(ps[0].Topic, "conf-full-")
			return err
		}
		b.receive = func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
			mu.Lock()
			stop := refused
			mu.Unlock()
			if stop {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return s.Receive(ctx, dst, maxBytes)
		}
		return b
	}, noticed: []string{"parking/full-lane"}, long: true},
	{name: "full lane: there is never room again", make: func() *broken {
		b := narrow(wholeLane)
		b.settle = func(s bus.Source, ctx context.Context, tokens []bus.Token) error { return s.Settle(ctx, tokens) }
		return b
	}, noticed: []string{"parking/full-lane"}},
}

// narrowRoom is how many messages may be parked in a lane of a narrow driver.
const narrowRoom = 10

var errFull = &bus.Error{Op: "park", Err: errors.New("no more can be parked in the lane"), Definite: true, Retryable: true}

// parkNarrow parks the messages that fit into their lane. The others are full; refuse says that
// each of them failed. Without it, err is the outcome of all.
type parkNarrow func(ctx context.Context, s driver.ParkingSource, fitting, full []driver.Parking) (refuse bool, err error)

// wholeLane is how drivers should do it.
func wholeLane(ctx context.Context, s driver.ParkingSource, fitting, _ []driver.Parking) (refuse bool, err error) {
	return true, s.Park(ctx, fitting)
}

// narrow is a driver whose lanes have room for narrowRoom parked messages.
func narrow(how parkNarrow) *broken {
	r := &narrowRooms{topics: map[bus.Source]string{}, taken: map[narrowLane]map[int64]bool{}}
	return &broken{
		room: narrowRoom,
		subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			src, err := d.Subscribe(ctx, s, o)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.topics[src] = s.Topic
			return src, err
		},
		park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			return r.park(ctx, s, ps, how)
		},
		settle: func(s bus.Source, ctx context.Context, tokens []bus.Token) error {
			r.mu.Lock()
			for _, t := range tokens {
				if t.Parked {
					delete(r.taken[narrowLane{r.topics[s], t.Lane}], t.Position)
				}
			}
			r.mu.Unlock()
			return s.Settle(ctx, tokens)
		},
	}
}

// narrowLane is a lane of a topic.
type narrowLane struct {
	topic string
	lane  int32
}

// narrowRooms knows the positions of the parked messages.
type narrowRooms struct {
	mu     sync.Mutex
	topics map[bus.Source]string
	taken  map[narrowLane]map[int64]bool
}

func (r *narrowRooms) park(ctx context.Context, s driver.ParkingSource, ps []driver.Parking, how parkNarrow) error {
	fits := r.fits(ps)
	var fitting, full []driver.Parking
	for i, p := range ps {
		if fits[i] {
			fitting = append(fitting, p)
		} else {
			full = append(full, p)
		}
	}
	refuse, err := how(ctx, s, fitting, full)
	refuse = refuse && len(full) > 0
	r.mu.Lock()
	defer r.mu.Unlock()
	errs := driver.FailAll(len(ps), errFull)
	for i := range ps {
		if fits[i] {
			ps[i], fitting, errs.Errs[i] = fitting[0], fitting[1:], err
		} else {
			ps[i], full = full[0], full[1:]
		}
		if l := (narrowLane{ps[i].Topic, ps[i].Lane}); ps[i].Token.Parked {
			if r.taken[l] == nil {
				r.taken[l] = map[int64]bool{}
			}
			r.taken[l][ps[i].Position] = true
		}
	}
	if refuse {
		return errs
	}
	return err
}

// fits says for which messages there is room.
func (r *narrowRooms) fits(ps []driver.Parking) []bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	fits := make([]bool, len(ps))
	more := map[narrowLane]int{}
	for i, p := range ps {
		l := narrowLane{p.Topic, p.Lane}
		if fits[i] = p.Token.Parked || len(r.taken[l])+more[l] < narrowRoom; fits[i] && !p.Token.Parked {
			more[l]++
		}
	}
	return fits
}
