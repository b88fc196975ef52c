package memory

import (
	"container/list"
	"context"
	"iter"
	"sync"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// poisonStore keeps the entries of one group, in the order of their first Put.
type poisonStore struct {
	mu    sync.Mutex
	order list.List // of driver.PoisonEntry
	byID  map[string]*list.Element
}

// Poison implements driver.Driver.
func (d *busDriver) Poison(_ context.Context, group string) (driver.PoisonStore, error) {
	select {
	case <-d.closed:
		return nil, fail("poison", "", bus.ErrClosed)
	default:
	}
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	s := d.store.poison[group]
	if s == nil {
		s = &poisonStore{byID: map[string]*list.Element{}}
		d.store.poison[group] = s
	}
	return s, nil
}

// Put implements driver.PoisonStore.
func (s *poisonStore) Put(_ context.Context, entries ...driver.PoisonEntry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		e.Message = e.Message.Clone()
		if at := s.byID[e.ID]; at != nil {
			at.Value = e
		} else {
			s.byID[e.ID] = s.order.PushBack(e)
		}
	}
	return nil
}

// List implements driver.PoisonStore.
func (s *poisonStore) List(ctx context.Context) iter.Seq2[driver.PoisonEntry, error] {
	return func(yield func(driver.PoisonEntry, error) bool) {
		s.mu.Lock()
		entries := make([]driver.PoisonEntry, 0, s.order.Len())
		for at := s.order.Front(); at != nil; at = at.Next() {
			entries = append(entries, at.Value.(driver.PoisonEntry))
		}
		s.mu.Unlock()
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				yield(driver.PoisonEntry{}, err)
				return
			}
			e.Message = e.Message.Clone()
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Remove implements driver.PoisonStore.
func (s *poisonStore) Remove(_ context.Context, ids ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if at := s.byID[id]; at != nil {
			s.order.Remove(at)
			delete(s.byID, id)
		}
	}
	return nil
}
