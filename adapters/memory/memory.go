// Package memory is a bus inside one process: bounded, ordered by key, with groups, and with replay
// for late groups. It is the default for tests, and for services whose parts talk to each other in
// one process.
//
// # URLs
//
//	memory:                     a bus of its own for each Open
//	memory:NAME                 one bus for every Open of this name in the process, until the last Close
//
// Parameters; for a shared bus the first Open sets them:
//
//	capacity=100000             messages that a topic holds until all its groups have settled them (1 to 100,000,000)
//	bytes=268435456             the same in bytes (1 KiB to 1 TiB)
//	retain=10000                settled messages that a topic keeps for groups that come late (0 to capacity)
//
// # Delivery semantics
//
// Published means: stored in memory; everything is gone with the process. When a topic is full,
// publishers wait, within their context, for the slowest group. A topic without any group keeps its
// newest messages, up to capacity, and forgets older ones. Equal keys are handled in publish order,
// also across the members of a group. A message is delivered again only if its group's member left
// without settling it. StartAt compares the messages' Time.
//
// # Topology
//
// A topic has 16 lanes, spread evenly over a group's members. The first use of a name makes the
// topic or group.
//
// # Native client
//
// There is none.
package memory

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func init() { driver.Register("memory", fromURL) }

// Config configures a memory bus. A zero field takes its default.
type Config struct {
	// Name shares one bus between all Opens of the name. "" opens a bus of its own.
	Name string
	// Capacity bounds the messages that a topic holds. Defaults to 100,000.
	Capacity int
	// Bytes bounds the sum of a topic's [bus.Message.Size], in bytes. Defaults to 256 MiB.
	Bytes int
	// Retain bounds the settled messages that a topic keeps for late groups, as long as they leave
	// room for a sixteenth of Capacity. Defaults to 10,000, or to Capacity if that is less; -1
	// keeps none.
	Retain int
}

// Defaults of Config.
const (
	DefaultCapacity = 100_000
	DefaultBytes    = 256 << 20
	DefaultRetain   = 10_000
)

func fromURL(_ context.Context, p *driver.Params) (driver.Driver, error) {
	u := p.URL()
	if u.Host != "" || u.Path != "" || u.User != nil {
		p.Fail("want memory: or memory:NAME, without slashes")
	}
	c := Config{
		Name:     u.Opaque,
		Capacity: p.Int("capacity", DefaultCapacity, 1, 100_000_000),
		Bytes:    p.Int("bytes", DefaultBytes, 1<<10, 1<<40),
	}
	c.Retain = p.Int("retain", min(DefaultRetain, c.Capacity), 0, c.Capacity)
	if c.Retain == 0 {
		c.Retain = -1
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	return open(c)
}

// Open opens a memory bus. It fails with [bus.ErrInvalid] if c is out of bounds.
func Open(c Config, opts ...bus.Option) (*bus.Bus, error) {
	d, err := open(c)
	if err != nil {
		return nil, err
	}
	return bus.New(d, opts...), nil
}

func open(c Config) (*busDriver, error) {
	if c.Capacity == 0 {
		c.Capacity = DefaultCapacity
	}
	if c.Bytes == 0 {
		c.Bytes = DefaultBytes
	}
	switch c.Retain {
	case 0:
		c.Retain = min(DefaultRetain, c.Capacity)
	case -1:
		c.Retain = 0
	}
	if c.Capacity < 1 || c.Bytes < 1 || c.Retain < 0 || c.Retain > c.Capacity {
		return nil, fmt.Errorf("memory: %w: Capacity %d, Bytes %d, Retain %d: want at least 1, at least 1, and -1 to Capacity", bus.ErrInvalid, c.Capacity, c.Bytes, c.Retain)
	}
	return &busDriver{store: shared.open(c), sources: map[*source]struct{}{}, closed: make(chan struct{})}, nil
}

// shared holds the named stores.
var shared = stores{byName: map[string]*store{}}

type stores struct {
	mu     sync.Mutex
	byName map[string]*store
}

func (s *stores) open(c Config) *store {
	if c.Name == "" {
		return newStore(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.byName[c.Name]
	if st == nil {
		st = newStore(c)
		s.byName[c.Name] = st
	}
	st.users++
	return st
}

func (s *stores) close(st *store) {
	if st.config.Name == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.users--; st.users == 0 {
		delete(s.byName, st.config.Name)
	}
}

// store holds everything in a bus.
type store struct {
	config Config
	users  int // guarded by stores.mu

	// topics is replaced and never changed, so that publishing finds its topic without a lock.
	topics atomic.Pointer[map[string]*topic]

	mu     sync.Mutex // guards the fields below, and replacing topics
	poison map[string]*poisonStore
}

func newStore(c Config) *store {
	s := &store{config: c, poison: map[string]*poisonStore{}}
	s.topics.Store(&map[string]*topic{})
	return s
}

func (s *store) topic(name string) *topic {
	if t := (*s.topics.Load())[name]; t != nil {
		return t
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.topics.Load()
	t := old[name]
	if t == nil {
		t = newTopic(name, s.config)
		topics := maps.Clone(old)
		topics[name] = t
		s.topics.Store(&topics)
	}
	return t
}
