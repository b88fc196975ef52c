// Package condition keeps the conditions of a subscription, for health and for the log.
//
// A condition is something that does not work. Its name is a statement of it, such as "settling failed". It begins with
// an error, and ends when the same works again. A [Reporter] is a driver's side: it merges what
// several goroutines meet. A [Set] is the side of the router: it knows since when, and writes the
// log.
package condition

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Disconnected names the condition that the broker cannot be reached. While it lasts, the log
// has no other condition: they follow from it.
const Disconnected = "disconnected"

// Patience is how long a condition lasts until the log has it. A failure that is repaired sooner
// needs nobody's attention; health has it from the start.
const Patience = time.Second

// Condition is one thing that does not work now.
type Condition struct {
	What  string
	Err   error
	Since time.Time
}

// Set is the conditions of one subscription. It writes one WARN when a condition has lasted for
// [Patience], and one INFO with the duration when it ends. Safe for concurrent use.
type Set struct {
	log *slog.Logger

	mu     sync.Mutex
	open   map[string]*lasting
	closed bool
}

// lasting is a condition that has not ended.
type lasting struct {
	Condition
	told  bool // the log has it
	timer *time.Timer
}

// NewSet makes a Set that writes to log.
func NewSet(log *slog.Logger) *Set {
	return &Set{log: log, open: map[string]*lasting{}}
}

// Note begins a condition, replaces its error, or ends it if err is nil.
func (s *Set) Note(what string, err error) {
	if err == nil {
		s.end(what)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	c := s.open[what]
	if c == nil {
		c = &lasting{Condition: Condition{What: what, Since: time.Now()}}
		c.timer = time.AfterFunc(Patience, func() { s.tell(c) })
		s.open[what] = c
	}
	c.Err = err
}

// tell writes the WARN of a condition that still lasts.
func (s *Set) tell(c *lasting) {
	s.mu.Lock()
	follows := c.What != Disconnected && s.open[Disconnected] != nil
	wanted := s.open[c.What] == c && !follows
	c.told = c.told || wanted
	err := c.Err
	s.mu.Unlock()
	if wanted {
		s.log.Warn(c.What+"; trying again", "since", c.Since, "err", err)
	}
}

func (s *Set) end(what string) {
	s.mu.Lock()
	c := s.open[what]
	if c == nil {
		s.mu.Unlock()
		return
	}
	delete(s.open, what)
	if what == Disconnected {
		s.tellOthers()
	}
	c.timer.Stop()
	level := slog.LevelDebug
	if c.told {
		level = slog.LevelInfo
	}
	s.mu.Unlock()
	s.log.Log(context.Background(), level, "over: "+what, "lasted", time.Since(c.Since).Round(time.Millisecond))
}

// tellOthers has the conditions that nobody heard of told, if they outlast the connection's end by
// Patience. The caller holds mu.
func (s *Set) tellOthers() {
	for _, c := range s.open {
		if !c.told {
			c.timer.Reset(Patience)
		}
	}
}

// All returns the conditions, the oldest first.
func (s *Set) All() []Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Condition, 0, len(s.open))
	for _, c := range s.open {
		all = append(all, c.Condition)
	}
	slices.SortFunc(all, func(a, b Condition) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.What, b.What))
	})
	return all
}

// Close forgets all conditions. Nothing more is told of them, nor of others.
func (s *Set) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		c.timer.Stop()
	}
	clear(s.open)
	s.closed = true
}
