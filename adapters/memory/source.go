package memory

import (
	"context"
	"fmt"
	"sync"

	"github.com/millrace-go/millrace/bus"
)

// source is one member of a group on one topic. The topic's lock guards its fields.
type source struct {
	driver   *busDriver
	topic    *topic
	group    *group
	observer bus.LaneObserver

	wake   *sync.Cond
	first  int // the lane to look at first
	closed bool

	slab []bus.Message // for the next messages; only Receive uses it
}

// run bounds the messages taken under one lock, so that publishers wait only for a moment. It is
// also the number of messages allocated at once.
const run = 64

// Receive implements bus.Source.
func (s *source) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	for n := 0; ; {
		if len(s.slab) == 0 {
			s.slab = make([]bus.Message, run)
		}
		taken, more, bytes := s.takeRun(dst[n:], n == 0, maxBytes)
		n, maxBytes = n+taken, maxBytes-bytes
		if n > 0 && (!more || n == len(dst)) {
			return n, nil
		}
		if n == 0 {
			return s.await(ctx, dst, maxBytes)
		}
	}
}

// takeRun is take under the lock.
func (s *source) takeRun(dst []bus.Delivery, first bool, maxBytes int) (n int, more bool, bytes int) {
	s.topic.mu.Lock()
	defer s.topic.mu.Unlock()
	return s.take(dst, first, maxBytes)
}

// await waits for messages.
func (s *source) await(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	t := s.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	defer context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		s.wake.Broadcast()
	})()
	for {
		if s.closed {
			return 0, fail("receive", t.name, bus.ErrClosed)
		}
		if n, _, _ := s.take(dst, true, maxBytes); n > 0 {
			return n, nil
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if t.intake.sleep() {
			t.asleep = append(t.asleep, s)
			s.wake.Wait()
		}
	}
}

// take fills dst from the source's lanes until the slab is used up, and begins with another lane
// each time. It returns the number and bytes of the messages, and whether there may be more. Only
// the first message may be larger than maxBytes.
func (s *source) take(dst []bus.Delivery, first bool, maxBytes int) (n int, more bool, bytes int) {
	if s.closed {
		return 0, false, 0
	}
	s.topic.admit()
	s.first++
	for i := range lanes {
		id := (s.first + i) % lanes
		l, log := &s.group.lanes[id], &s.topic.logs[id]
		if l.owner != s {
			continue
		}
		l.read = max(l.read, log.base)
		for l.read < log.next {
			e := log.at(l.read)
			switch {
			case n == len(dst) || len(s.slab) == 0:
				return n, true, bytes
			case bytes+e.size > maxBytes && !(first && n == 0):
				return n, false, bytes
			}
			pos := l.read
			l.read++
			if !l.window.Add(pos) {
				continue // an earlier owner settled it
			}
			m := &s.slab[0]
			s.slab = s.slab[1:]
			*m = e.msg
			dst[n] = bus.Delivery{
				Message: m,
				Token:   bus.Token{Lane: int32(id), Epoch: l.epoch, Position: pos},
				Topic:   s.topic.name,
				Attempt: 1,
			}
			bytes += e.size
			n++
		}
	}
	return n, false, bytes
}

// Settle implements bus.Source.
func (s *source) Settle(_ context.Context, tokens []bus.Token) error {
	t := s.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.closed {
		return fail("settle", t.name, bus.ErrClosed)
	}
	stale := 0
	for _, tok := range tokens {
		l := s.lane(tok)
		switch {
		case l == nil:
			stale++
		case tok.Parked:
			delete(l.parked.byPosition, tok.Position)
		default:
			l.window.Done(tok.Position)
		}
	}
	if t.waiting > 0 {
		t.room.Broadcast()
	}
	if stale > 0 {
		return fail("settle", t.name, fmt.Errorf("%d of %d: %w", stale, len(tokens), bus.ErrStale))
	}
	return nil
}

// Close implements bus.Source.
func (s *source) Close(context.Context) error {
	t := s.topic
	t.mu.Lock()
	if s.closed {
		t.mu.Unlock()
		return nil
	}
	s.closed = true
	s.wake.Broadcast()
	t.leave(s)
	t.mu.Unlock()
	s.driver.mu.Lock()
	delete(s.driver.sources, s)
	s.driver.mu.Unlock()
	return nil
}
