package conformance

import (
	"context"
	"errors"
	"sync"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// narrowDriver is a driver whose lanes have room for few parked messages.
type narrowDriver struct{ driver.Driver }

// Subscribe implements driver.Driver.
func (d *narrowDriver) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	r := &rooms{taken: map[int32]map[int64]bool{}}
	src, err := d.Driver.Subscribe(ctx, s, &roomObserver{o.(driver.ParkingObserver), r})
	if p, ok := src.(driver.ParkingSource); ok {
		src = &narrowSource{p, r}
	}
	return src, err
}

// rooms knows the positions of the messages that are parked in each lane of a source.
type rooms struct {
	mu    sync.Mutex
	taken map[int32]map[int64]bool
}

// add notes parked messages.
func (r *rooms) add(t bus.Token) {
	if r.taken[t.Lane] == nil {
		r.taken[t.Lane] = map[int64]bool{}
	}
	r.taken[t.Lane][t.Position] = true
}

// roomObserver notes what former owners of a lane, and others, have parked.
type roomObserver struct {
	driver.ParkingObserver
	rooms *rooms
}

// Assigned implements bus.LaneObserver.
func (o *roomObserver) Assigned(lanes []bus.Lane) {
	o.rooms.mu.Lock()
	for _, l := range lanes {
		delete(o.rooms.taken, l.ID)
	}
	o.rooms.mu.Unlock()
	o.ParkingObserver.Assigned(lanes)
}

// Parked implements driver.ParkingObserver.
func (o *roomObserver) Parked(ps []driver.Parked) {
	o.rooms.mu.Lock()
	for _, p := range ps {
		if o.rooms.add(p.Token); p.Withdrawn {
			delete(o.rooms.taken[p.Lane], p.Position)
		}
	}
	o.rooms.mu.Unlock()
	o.ParkingObserver.Parked(ps)
}

// narrowSource refuses messages that do not fit into their lane.
type narrowSource struct {
	driver.ParkingSource
	rooms *rooms
}

// Park implements driver.ParkingSource.
func (s *narrowSource) Park(ctx context.Context, ps []driver.Parking) error {
	fitting, at := s.fitting(ps)
	var err error
	if len(fitting) > 0 {
		err = s.ParkingSource.Park(ctx, fitting)
	}
	each, byDelivery := errors.AsType[*bus.PublishError](err)
	errs := driver.FailAll(len(ps), &bus.Error{Op: "park", Err: errors.New("no more messages can be parked in the lane"), Definite: true, Retryable: true})
	s.rooms.mu.Lock()
	defer s.rooms.mu.Unlock()
	for k, i := range at {
		ps[i] = fitting[k]
		if errs.Errs[i] = err; byDelivery {
			errs.Errs[i] = each.Errs[k]
		}
		if ps[i].Token.Parked {
			s.rooms.add(ps[i].Token)
		}
	}
	if len(fitting) == len(ps) {
		return err
	}
	return errs
}

// fitting returns the messages for which there is room, and their places in ps.
func (s *narrowSource) fitting(ps []driver.Parking) (fitting []driver.Parking, at []int) {
	s.rooms.mu.Lock()
	defer s.rooms.mu.Unlock()
	more := map[int32]int{}
	for i, p := range ps {
		if !p.Token.Parked {
			if len(s.rooms.taken[p.Lane])+more[p.Lane] >= fullRoom {
				continue
			}
			more[p.Lane]++
		}
		fitting, at = append(fitting, p), append(at, i)
	}
	return fitting, at
}

// Settle implements bus.Source.
func (s *narrowSource) Settle(ctx context.Context, tokens []bus.Token) error {
	err := s.ParkingSource.Settle(ctx, tokens)
	if err == nil {
		s.rooms.mu.Lock()
		defer s.rooms.mu.Unlock()
		for _, t := range tokens {
			if t.Parked {
				delete(s.rooms.taken[t.Lane], t.Position)
			}
		}
	}
	return err
}

// Commit implements driver.Committer.
func (s *narrowSource) Commit(ctx context.Context) error {
	if c, ok := s.ParkingSource.(driver.Committer); ok {
		return c.Commit(ctx)
	}
	return nil
}
