package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// parkingOf returns the parking of a token's lane, or nil if the token is stale.
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
	token              bus.Token
	parking            *parking
	position, revision int64
}

// Park implements driver.ParkingSource.
func (s *source) Park(ctx context.Context, ps []driver.Parking) error {
	if s.ctx.Err() != nil {
		return fail("park", s.sub.Topic, bus.ErrClosed)
	}
	var errs []error
	failed := func(i int, err error, definite bool) {
		if errs == nil {
			errs = make([]error, len(ps))
		}
		errs[i] = &bus.Error{Op: "park", Broker: broker, Topic: s.sub.Topic, Err: err, Definite: definite, Retryable: amqplink.Retryable(err)}
	}
	places := s.places(ps, failed)
	outcomes := s.d.pub.sendEach(ctx, len(places), func(i int, x *amqplink.Parcel) (err error) {
		at := &places[i]
		x.Key = at.parking.queue
		if x.Publishing, err = encodeParked(&ps[at.of], parkMessage); err == nil {
			x.Headers[positionHeader], x.Headers[revisionHeader] = at.position, at.revision
		}
		return err
	})
	stored := places[:0]
	for k, at := range places {
		if outcomes == nil || outcomes[k] == nil {
			at.parking.stored(at.token, at.position, at.revision)
			stored = append(stored, at)
			continue
		}
		definite := true
		if r, ok := errors.AsType[*amqplink.RefusedError](outcomes[k]); ok {
			definite = r.Definite
		}
		at.parking.notStored(at.token, at.position, definite)
		failed(at.of, outcomes[k], definite)
	}
	return s.parked(ps, stored, errs)
}

// places has a place for each message with a lane that is ours and has room.
func (s *source) places(ps []driver.Parking, failed func(i int, err error, definite bool)) []place {
	places := make([]place, 0, len(ps))
	for i := range ps {
		p := s.parkingOf(ps[i].Token)
		if p == nil {
			continue
		}
		position, revision, err := p.place(ps[i].Token)
		switch {
		case err == nil:
			places = append(places, place{of: i, token: ps[i].Token, parking: p, position: position, revision: revision})
		case !errors.Is(err, bus.ErrStale):
			failed(i, err, true)
		}
	}
	return places
}

// parked settles the stored messages at their origin. errs has the other messages' failures.
func (s *source) parked(ps []driver.Parking, places []place, errs []error) error {
	done := make([]bool, len(ps))
	parked := 0
	for _, at := range places {
		t := &ps[at.of].Token
		if !t.Parked && s.lanes[t.Lane].done([]bus.Token{*t}) > 0 {
			continue // it comes from there again, or from here, to the lane's next owner
		}
		t.Parked, t.Position = true, at.position
		done[at.of] = true
		parked++
	}
	for _, at := range places {
		s.lanes[ps[at.of].Lane].commit()
	}
	stale := fail("park", s.sub.Topic, fmt.Errorf("%d of %d: %w", len(ps)-parked, len(ps), bus.ErrStale))
	switch {
	case parked == len(ps):
		return nil
	case errs == nil:
		return stale
	}
	for i := range ps {
		if errs[i] == nil && !done[i] {
			errs[i] = stale
		}
	}
	return &bus.PublishError{Errs: errs}
}

// fetching is one call of Fetch.
type fetching struct {
	mu    sync.Mutex
	dst   []bus.Delivery
	here  []bool
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
	decodeParked(d, &w.call.dst[w.i])
	w.call.here[w.i] = true
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

// Fetch implements driver.ParkingSource.
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
	n := 0
	for i := range call.dst {
		if call.here[i] {
			dst[n] = call.dst[i]
			n++
		}
	}
	return n, nil
}
