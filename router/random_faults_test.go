package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// shaky is a memory broker that fails now and then, and whose members lose their sessions.
type shaky struct {
	driver.Driver
	w *world
}

var errShaky = errors.New("the broker is shaky")

func (d *shaky) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	src := &shakySource{d: d, sub: s, o: o, lanes: map[int32]bus.Lane{}, parked: map[bus.Token]bus.Token{}}
	inner, err := d.Driver.Subscribe(ctx, s, src)
	if err != nil {
		return nil, err
	}
	src.inner = inner.(driver.ParkingSource)
	d.w.addSource(src)
	return src, nil
}

func (d *shaky) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	s, err := d.Driver.Poison(ctx, group)
	return &shakyPoison{s, d.w}, err
}

// As implements the escape hatch of wrapped drivers.
func (d *shaky) As(target any) bool {
	if injector, ok := target.(*driver.Injector); ok {
		*injector, ok = d.Driver.(driver.Injector)
		return ok
	}
	return false
}

type shakyPoison struct {
	driver.PoisonStore
	w *world
}

func (p *shakyPoison) Put(ctx context.Context, es ...driver.PoisonEntry) error {
	before, after := p.w.faults()
	if before {
		return errShaky
	}
	err := p.PoisonStore.Put(ctx, es...)
	for _, e := range es {
		p.w.poisoned(e)
	}
	if err == nil && after {
		return errShaky
	}
	return err
}

// shakySource passes on to a source of the memory driver, which it replaces when its session is lost.
type shakySource struct {
	d   *shaky
	sub bus.Subscription
	o   bus.LaneObserver

	mu     sync.Mutex
	inner  driver.ParkingSource
	lanes  map[int32]bus.Lane
	closed bool
	parked map[bus.Token]bus.Token // what was parked by a call that failed all the same
}

func (s *shakySource) current() driver.ParkingSource {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inner
}

// lose ends the session: all lanes are lost, what is not settled goes to others, and the member joins anew.
func (s *shakySource) lose(ctx context.Context) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	var lost []bus.Lane
	for _, l := range s.lanes {
		lost = append(lost, l)
	}
	clear(s.lanes)
	old := s.inner
	s.mu.Unlock()
	s.o.Lost(lost, errShaky)
	inner, err := s.d.Driver.Subscribe(ctx, s.sub, s)
	if err != nil {
		return
	}
	s.mu.Lock()
	s.inner = inner.(driver.ParkingSource)
	closed := s.closed
	s.mu.Unlock()
	_ = old.Close(ctx)
	if closed {
		_ = inner.Close(ctx)
	}
}

func (s *shakySource) Assigned(lanes []bus.Lane) {
	s.mu.Lock()
	for _, l := range lanes {
		s.lanes[l.ID] = l
	}
	s.mu.Unlock()
	s.o.Assigned(lanes)
}

func (s *shakySource) Revoking(ctx context.Context, lanes []bus.Lane) {
	s.o.Revoking(ctx, lanes)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range lanes {
		if s.lanes[l.ID] == l {
			delete(s.lanes, l.ID)
		}
	}
}

func (s *shakySource) Lost(lanes []bus.Lane, cause error) { s.o.Lost(lanes, cause) }
func (s *shakySource) Parked(ps []driver.Parked)          { s.o.(driver.ParkingObserver).Parked(ps) }

func (s *shakySource) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	if before, _ := s.d.w.faults(); before {
		return 0, errShaky
	}
	inner := s.current()
	n, err := inner.Receive(ctx, dst, maxBytes)
	if errors.Is(err, bus.ErrClosed) && s.current() != inner {
		return 0, errShaky
	}
	return n, err
}

func (s *shakySource) Settle(ctx context.Context, tokens []bus.Token) error {
	err := s.change(func(inner driver.ParkingSource) error { return inner.Settle(ctx, tokens) })
	s.d.w.note("settle %+v: %v", tokens, err)
	return err
}

// change is a call that fails before or after it has taken effect.
func (s *shakySource) change(call func(inner driver.ParkingSource) error) error {
	before, after := s.d.w.faults()
	if before {
		return errShaky
	}
	inner := s.current()
	err := call(inner)
	switch {
	case err == nil && after:
		return errShaky
	case errors.Is(err, bus.ErrClosed) && s.current() != inner:
		return fmt.Errorf("%w: %w", errShaky, bus.ErrStale)
	}
	return err
}

func (s *shakySource) Park(ctx context.Context, ps []driver.Parking) error {
	refused := make([]error, len(ps))
	var taken []driver.Parking
	s.mu.Lock()
	for i, p := range ps {
		if refused[i] = s.d.w.refusal(p.ID); refused[i] == nil {
			if again, ok := s.parked[p.Token]; ok { // twice is once
				p.Token = again
			}
			taken = append(taken, p)
		}
	}
	s.mu.Unlock()
	before := slices.Clone(taken)
	err := s.change(func(inner driver.ParkingSource) error { return inner.Park(ctx, taken) })
	for i := range taken {
		s.d.w.note("park %s: %+v becomes %+v: %v", taken[i].ID, before[i].Token, taken[i].Token, err)
	}
	if errors.Is(err, errShaky) && !errors.Is(err, bus.ErrStale) { // nothing is known
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range taken {
			s.parked[before[i].Token] = taken[i].Token
		}
		return err
	}
	for i := range ps {
		if refused[i] == nil {
			ps[i], taken = taken[0], taken[1:]
		}
	}
	if err == nil && slices.ContainsFunc(refused, func(err error) bool { return err != nil }) {
		return &bus.PublishError{Errs: refused}
	}
	return err
}

func (s *shakySource) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	if before, _ := s.d.w.faults(); before {
		return 0, errShaky
	}
	inner := s.current()
	n, err := inner.Fetch(ctx, tokens, dst)
	if errors.Is(err, bus.ErrClosed) && s.current() != inner {
		return 0, errShaky
	}
	return n, err
}

func (s *shakySource) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	inner := s.inner
	s.mu.Unlock()
	return inner.Close(ctx)
}

// faults says whether a call fails, before or after it has taken effect. It takes its time.
func (w *world) faults() (before, after bool) {
	if !w.faulty.Load() {
		return false, false
	}
	if w.chance(3) {
		time.Sleep(w.upTo(300 * time.Millisecond))
	}
	return w.chance(12), w.chance(12)
}

// refusal is why a message is not parked.
func (w *world) refusal(id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.plan.refuses:
		return nil
	case w.messages[id] != nil && w.messages[id].n == 3:
		return &bus.Error{Op: "park", Broker: "shaky", Err: bus.ErrTooLarge}
	case w.faulty.Load() && w.rng.IntN(4) == 0:
		return &bus.Error{Op: "park", Broker: "shaky", Err: errShaky, Retryable: true}
	}
	return nil
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say(format, args...)
}
