package aggregate

import (
	"fmt"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
)

// Decision is a business rule: it returns what happens, given the state. Its error is a refusal:
// nothing is appended. It may be made again after a conflict, so it must have no effects, and must
// not change the state. It runs in a goroutine of the repository, perhaps after its caller has
// left; it must not end that goroutine (runtime.Goexit, testing.T.FailNow).
type Decision[S, E any] = func(S) ([]E, error)

// Kind is a kind of aggregate: its state S, its events E, and how they are kept. [Define] makes it.
// It is safe for concurrent use.
type Kind[S, E any] struct {
	name   string
	events *eventstore.Types[E]
	apply  func(*S, E)
	options
}

// Option configures a kind for [Define].
type Option func(*options)

type options struct{ every, schema, cached, tries int }

// DefaultTries is the default of [Tries].
const DefaultTries = 8

// Snapshots stores the state every n events, after the append and beside it. Default: never (0).
// schema is a number to raise when the meaning of the state changes: snapshots of other schemas are
// not used. A snapshot that cannot be stored is a warning in the bus's log; nothing depends on it,
// except for streams whose beginning was truncated.
//
// Note: the first codec of the bus encodes the state, which must come back from it whole. With
// JSON, all its fields must be exported.
func Snapshots(n, schema int) Option { return func(o *options) { o.every, o.schema = n, schema } }

// Cached keeps the n states that were used last in the process, so that Do need not read them.
// Default 0. They change no result: an append expects their version, and what is decided on a kept
// state without an append, such as a refusal, is decided again on the newest.
func Cached(n int) Option { return func(o *options) { o.cached = n } }

// Tries sets how many appends of a command may conflict with other processes until Do returns the
// [*eventstore.Conflict]. At least 1, default 8.
func Tries(n int) Option { return func(o *options) { o.tries = n } }

// Define defines a kind. Its streams are named name-id; name has 1 to 200 bytes. *S has a method
// Apply, which changes the state by an event and cannot refuse it. Apply gets events from the
// beginning on, the zero S first. Mistakes in the definition are errors of [Kind.Check],
// and of all calls of its repositories.
func Define[S, E any, P interface {
	*S
	Apply(event E)
}](name string, events *eventstore.Types[E], opts ...Option) *Kind[S, E] {
	k := &Kind[S, E]{name: name, events: events, apply: func(s *S, e E) { P(s).Apply(e) }, options: options{tries: DefaultTries}}
	for _, o := range opts {
		o(&k.options)
	}
	return k
}

// Check returns what is wrong with the definition or its events, nil if nothing is. The error wraps
// bus.ErrInvalid.
func (k *Kind[S, E]) Check() error {
	if k.name == "" || len(k.name) > 200 {
		return fmt.Errorf("aggregate: %w: the name of the kind has %d bytes: want 1 to 200", bus.ErrInvalid, len(k.name))
	}
	if k.every < 0 || k.cached < 0 || k.tries < 1 {
		return fmt.Errorf("aggregate: kind %q: %w: Snapshots(%d), Cached(%d), Tries(%d): want at least 0, 0 and 1", k.name, bus.ErrInvalid, k.every, k.cached, k.tries)
	}
	if k.events == nil {
		return fmt.Errorf("aggregate: kind %q: %w: its family of types is empty: want at least one event", k.name, bus.ErrInvalid)
	}
	if err := k.events.Check(); err != nil {
		return fmt.Errorf("aggregate: kind %q: %w", k.name, err)
	}
	return nil
}

// Stream returns the name of the stream of the aggregate with the id: name-id.
func (k *Kind[S, E]) Stream(id string) string { return k.name + "-" + id }

// In returns the kind's repository in a store. Make one in a process: commands that meet in a
// repository never conflict. Mistakes in the kind are errors of each call.
func (k *Kind[S, E]) In(s *eventstore.Store) *Repository[S, E] {
	return &Repository[S, E]{kind: k, store: s, invalid: k.Check(), live: &live[S, E]{byID: map[string]*aggregate[S, E]{}}}
}
