package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// parkingOf is what a token's lane has parked, or nil if the token is stale.
func (s *source) parkingOf(t bus.Token) *parking {
	if t.Lane < 0 || int(t.Lane) >= len(s.lanes) {
		return nil
	}
	o := s.lanes[t.Lane].current.Load()
	if o == nil || o.lane.Epoch != t.Epoch {
		return nil
	}
	return o.parking()
}

// place is where a message is about to be parked.
type place struct {
	of                 int // which of the call
	parking            *parking
	position, revision int64
}

// Park implements bus.ParkingSource.
func (s *source) Park(ctx context.Context, ps []bus.Parking) error {
	if s.ctx.Err() != nil {
		return fail("park", s.sub.Topic, bus.ErrClosed)
	}
	places, err := s.places(ps)
	if err != nil {
		return fail("park", s.sub.Topic, err)
	}
	err = s.d.pub.send(ctx, len(places), func(i int, x *parcel) (err error) {
		at := &places[i]
		x.key = at.parking.queue
		if x.Publishing, err = encodeParked(&ps[at.of], parkMessage); err == nil {
			x.Headers[positionHeader], x.Headers[revisionHeader] = at.position, at.revision
		}
		return err
	})
	if err != nil {
		leave(places)
		return fail("park", s.sub.Topic, err)
	}
	return s.parked(ps, places)
}

// places has a place for each message whose lane is ours.
func (s *source) places(ps []bus.Parking) ([]place, error) {
	places := make([]place, 0, len(ps))
	for i := range ps {
		p := s.parkingOf(ps[i].Token)
		if p == nil {
			continue
		}
		position, revision, err := p.place(ps[i].Token)
		switch {
		case err == nil:
			places = append(places, place{i, p, position, revision})
		case !errors.Is(err, bus.ErrStale):
			leave(places)
			return nil, err
		}
	}
	return places, nil
}

func leave(places []place) {
	for _, at := range places {
		at.parking.leave(at.position)
	}
}

// parked settles at their origin what has been stored.
func (s *source) parked(ps []bus.Parking, places []place) error {
	parked := 0
	for _, at := range places {
		t := &ps[at.of].Token
		if !t.Parked && s.lanes[t.Lane].done([]bus.Token{*t}) > 0 {
			continue // it comes from there again, or from here, to the lane's next owner
		}
		t.Parked, t.Position = true, at.position
		parked++
	}
	for _, at := range places {
		s.lanes[ps[at.of].Lane].commit()
	}
	if parked < len(ps) {
		return fail("park", s.sub.Topic, fmt.Errorf("%d of %d: %w", len(ps)-parked, len(ps), bus.ErrStale))
	}
	return nil
}

// fetching is one call of Fetch.
type fetching struct {
	mu    sync.Mutex
	dst   []bus.Delivery
	here  []bool
	err   error
	left  int
	ready chan struct{} // closed when nothing is left
}

// wanted is one message that a Fetch waits for.
type wanted struct {
	call *fetching
	i    int
}

func (w *wanted) found(d *amqp.Delivery) {
	w.call.mu.Lock()
	defer w.call.mu.Unlock()
	if err := decodeParked(d, &w.call.dst[w.i]); err != nil {
		w.call.err = err
	} else {
		w.call.here[w.i] = true
	}
	w.call.done()
}

func (w *wanted) missing() {
	w.call.mu.Lock()
	defer w.call.mu.Unlock()
	w.call.done()
}

func (f *fetching) done() {
	if f.left--; f.left == 0 {
		close(f.ready)
	}
}

// Fetch implements bus.ParkingSource.
func (s *source) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	if s.ctx.Err() != nil {
		return 0, fail("fetch", s.sub.Topic, bus.ErrClosed)
	}
	call := &fetching{dst: make([]bus.Delivery, len(tokens)), here: make([]bool, len(tokens)), left: len(tokens) + 1, ready: make(chan struct{})}
	for i, t := range tokens {
		call.dst[i] = bus.Delivery{Token: t, Topic: s.sub.Topic, Group: s.sub.Group}
		w := &wanted{call, i}
		if p := s.parkingOf(t); p == nil || !t.Parked || !p.want(t.Position, w) {
			w.missing()
		}
	}
	(&wanted{call: call}).missing() // all have been asked for
	select {
	case <-call.ready:
	case <-ctx.Done():
		for _, t := range tokens {
			if p := s.parkingOf(t); p != nil {
				p.unwant(t.Position, call)
			}
		}
		return 0, context.Cause(ctx)
	}
	if call.err != nil {
		return 0, fail("fetch", s.sub.Topic, call.err)
	}
	n := 0
	for i := range call.dst {
		if call.here[i] {
			dst[n] = call.dst[i]
			n++
		}
	}
	return n, nil
}

// want has a parked message delivered again. It returns false if there is none.
func (p *parking) want(position int64, w *wanted) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[position]
	if e == nil || p.ended || e.wanted != nil {
		return false
	}
	e.wanted = w
	if e.tag != 0 && e.revision == e.written { // else it is on the way
		_ = p.ch.Nack(e.tag, false, true)
		e.tag = 0
	}
	return true
}

func (p *parking) unwant(position int64, call *fetching) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[position]; e != nil && e.wanted != nil && e.wanted.call == call {
		e.wanted = nil
	}
}
