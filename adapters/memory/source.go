package memory

import (
	"context"
	"fmt"
	"sync"

	"github.com/millrace-go/millrace/bus"
)

// source is one member of a group on one topic. Its fields are guarded by the topic's lock.
type source struct {
	driver   *driver
	topic    *topic
	group    *group
	observer bus.LaneObserver

	wake   *sync.Cond
	turn   int // the lane to look at first
	closed bool
}

// Receive implements bus.Source.
func (s *source) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	t := s.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := s.take(dst, maxBytes); n > 0 {
		return n, nil
	}
	defer context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		s.wake.Broadcast()
	})()
	for {
		if s.closed {
			return 0, fail("receive", t.name, bus.ErrClosed)
		}
		if n := s.take(dst, maxBytes); n > 0 {
			return n, nil
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		t.asleep = append(t.asleep, s)
		s.wake.Wait()
	}
}

// take fills dst from the lanes that the source owns, beginning with another one each time.
func (s *source) take(dst []bus.Delivery, maxBytes int) int {
	if s.closed {
		return 0
	}
	n := 0
	var slab []bus.Message // one allocation for the messages of the batch
	s.turn++
	for i := range lanes {
		id := (s.turn + i) % lanes
		l, log := &s.group.lanes[id], &s.topic.logs[id]
		if l.owner != s {
			continue
		}
		l.read = max(l.read, log.base)
		for l.read < log.next && n < len(dst) {
			e := log.at(l.read)
			if n > 0 && e.size > maxBytes {
				return n
			}
			pos := l.read
			l.read++
			if !l.window.Add(pos) {
				continue // an earlier owner settled it
			}
			if len(slab) == 0 {
				slab = make([]bus.Message, min(len(dst)-n, int(log.next-pos)))
			}
			slab[0] = e.msg
			dst[n] = bus.Delivery{
				Message: &slab[0],
				Token:   bus.Token{Lane: int32(id), Epoch: l.epoch, Position: pos},
				Topic:   s.topic.name,
				Attempt: 1,
			}
			slab = slab[1:]
			maxBytes -= e.size
			n++
		}
	}
	return n
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
