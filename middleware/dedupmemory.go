package middleware

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Defaults of [DedupMemory].
const (
	DefaultDedupTTL     = time.Hour
	DefaultDedupEntries = 100_000
)

// DedupMemory is a [DedupStore] in the process: its ids are gone with the process, and other
// processes do not know them. A key's messages stay with one process, except when its lane moves.
// The zero value is ready. It is safe for concurrent use; do not copy it.
type DedupMemory struct {
	// TTL is the time for which an id is remembered. Defaults to 1 h.
	TTL time.Duration
	// Entries bounds the remembered ids, over all groups and topics; the oldest are forgotten
	// first. An entry takes about 300 bytes. Defaults to 100,000.
	Entries int

	mu    sync.Mutex
	byID  map[inFlight]*list.Element
	order list.List // of remembered, the oldest first
}

type remembered struct {
	inFlight
	until time.Time
}

// Check reports invalid settings. [Deduplicate] calls it.
func (s *DedupMemory) Check() error {
	if s.TTL < 0 || s.Entries < 0 {
		return fmt.Errorf("middleware: %w: DedupMemory with TTL %v, Entries %d: want 0 (the default) or more", bus.ErrInvalid, s.TTL, s.Entries)
	}
	return nil
}

// Seen implements DedupStore.
func (s *DedupMemory) Seen(_ context.Context, scope string, ids []string) ([]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(time.Now(), s.entries())
	seen := make([]bool, len(ids))
	for i, id := range ids {
		_, seen[i] = s.byID[inFlight{scope, id}]
	}
	return seen, nil
}

// Remember implements DedupStore.
func (s *DedupMemory) Remember(_ context.Context, scope string, ids []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = map[inFlight]*list.Element{}
	}
	now := time.Now()
	ttl := s.TTL
	if ttl == 0 {
		ttl = DefaultDedupTTL
	}
	for _, id := range ids {
		r := remembered{inFlight{scope, id}, now.Add(ttl)}
		if e := s.byID[r.inFlight]; e != nil {
			e.Value = r
			s.order.MoveToBack(e)
			continue
		}
		s.forget(now, s.entries()-1)
		s.byID[r.inFlight] = s.order.PushBack(r)
	}
	return nil
}

func (s *DedupMemory) entries() int {
	if s.Entries == 0 {
		return DefaultDedupEntries
	}
	return s.Entries
}

// forget removes ids past their TTL, and the oldest beyond the number to keep.
func (s *DedupMemory) forget(now time.Time, keep int) {
	for e := s.order.Front(); e != nil; e = s.order.Front() {
		r := e.Value.(remembered)
		if s.order.Len() <= keep && r.until.After(now) {
			return
		}
		s.order.Remove(e)
		delete(s.byID, r.inFlight)
	}
}
