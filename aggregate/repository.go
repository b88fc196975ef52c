package aggregate

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
)

// Repository executes commands on the aggregates of a kind in a store. [Kind.In] makes it. It is
// safe for concurrent use, and needs no closing.
type Repository[S, E any] struct {
	kind    *Kind[S, E]
	store   *eventstore.Store
	invalid error
	live    *live[S, E]
	tx      driver.Execer // nil: none
}

// Do makes decisions one after the other, each on what the one before made of the newest state, and
// appends the events that they return, all or nothing. Their headers are those of ctx. Without
// events it appends nothing, and returns the version alone.
//
// The error of a decision is returned as it is. A decision that panics does so in the caller.
// Commands of one aggregate in one repository never conflict. After a conflict with another process
// the state is read on, and the decisions are made again; [Tries] bounds that.
//
// Other errors are those of [eventstore.Store.Append]. One for which bus.IsDefinite is false leaves
// open whether the events were appended; that of a ctx that ended during the call is one of them.
func (r *Repository[S, E]) Do(ctx context.Context, id string, decisions ...Decision[S, E]) (eventstore.Appended, error) {
	return r.do(ctx, id, anyVersion, decisions)
}

// DoAt is [Repository.Do] for callers who have seen a version, as with If-Match: any other one is a
// [*eventstore.Conflict], and nothing is tried again. Version 0 has no events; below is
// bus.ErrInvalid.
func (r *Repository[S, E]) DoAt(ctx context.Context, id string, version int64, decisions ...Decision[S, E]) (eventstore.Appended, error) {
	if version < 0 {
		return eventstore.Appended{}, fmt.Errorf("aggregate: %w: version %d: want 0 or more", bus.ErrInvalid, version)
	}
	return r.do(ctx, id, version, decisions)
}

// In returns the repository in a transaction of the store's database, in which the caller may also
// update a view; see [eventstore.Store.In]. It reads what is committed, over another connection. So
// a second command for an aggregate in one transaction conflicts, and on sqlite::memory:, which has
// one connection, a command waits for itself. Nothing is tried again: after a conflict or another
// error roll back, and run the transaction anew.
func (r *Repository[S, E]) In(tx driver.Execer) *Repository[S, E] {
	in := *r
	in.tx = tx
	return &in
}

// Load reads an aggregate's state and its version; without events they are zero. It uses snapshots
// and no kept states, so the state is the caller's own.
func (r *Repository[S, E]) Load(ctx context.Context, id string) (S, int64, error) {
	var s state[S]
	if r.invalid != nil {
		return s.value, 0, r.invalid
	}
	s, err := r.load(ctx, id)
	return s.value, s.version, err
}

// As reads the state as it was at a time, and its version: it applies the events up to the first
// whose Time is later. It needs the stream from its beginning; if that was removed the error wraps
// [eventstore.ErrTruncated].
func (r *Repository[S, E]) As(ctx context.Context, id string, of time.Time) (S, int64, error) {
	var s state[S]
	if r.invalid != nil {
		return s.value, 0, r.invalid
	}
	for e, err := range r.store.Read(ctx, r.kind.Stream(id), 1) {
		if err == nil && e.Time.After(of) {
			break
		}
		if err == nil {
			err = r.kind.advance(&s, e)
		}
		if err != nil {
			return s.value, s.version, err
		}
	}
	return s.value, s.version, nil
}

// History reads an aggregate's events, as its family has them today. The sequence ends with its
// first error.
func (r *Repository[S, E]) History(ctx context.Context, id string) iter.Seq2[E, error] {
	return func(yield func(E, error) bool) {
		for stored, err := range r.store.Read(ctx, r.kind.Stream(id), 0) {
			var events []E
			if err == nil {
				events, err = r.kind.events.Decode(stored)
			}
			if err != nil {
				var none E
				yield(none, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// state is an aggregate's state at a version.
type state[S any] struct {
	value   S
	version int64
	eventID string // of the event with the version
	closed  bool   // that event ended the stream
	saved   int64  // the version of the last snapshot
}

// advance applies a stored event.
func (k *Kind[S, E]) advance(s *state[S], stored eventstore.Recorded) error {
	events, err := k.events.Decode(stored)
	if err != nil {
		return err
	}
	for _, e := range events {
		k.apply(&s.value, e)
	}
	s.version, s.eventID, s.closed = stored.Version, stored.ID, stored.Type == eventstore.TypeClosed
	return nil
}

// load makes the newest state, from a snapshot if there is one that fits.
func (r *Repository[S, E]) load(ctx context.Context, id string) (state[S], error) {
	if r.kind.every > 0 {
		s, ok, err := r.fromSnapshot(ctx, id)
		if err != nil || ok {
			return s, err
		}
	}
	var s state[S]
	err := r.readOn(ctx, id, &s)
	return s, err
}

// readOn applies the events that follow a state.
func (r *Repository[S, E]) readOn(ctx context.Context, id string, s *state[S]) error {
	for e, err := range r.store.Read(ctx, r.kind.Stream(id), s.version+1) {
		if err == nil {
			err = r.kind.advance(s, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fromSnapshot makes the newest state from the snapshot. It returns false if there is none of this
// schema, it cannot be decoded, or it is of an event that the stream has not got: a database that
// was restored may be behind its snapshots.
func (r *Repository[S, E]) fromSnapshot(ctx context.Context, id string) (s state[S], ok bool, err error) {
	stream := r.kind.Stream(id)
	snap, err := r.store.Snapshot(ctx, stream)
	if err != nil || snap.Version == 0 || snap.Schema != r.kind.schema {
		return s, false, err
	}
	if r.store.Bus().Decode(&bus.Message{ContentType: snap.ContentType, Payload: snap.State}, &s.value) != nil {
		return state[S]{}, false, nil
	}
	first := true
	for e, err := range r.store.Read(ctx, stream, snap.Version) {
		switch {
		case errors.Is(err, eventstore.ErrTruncated):
			return state[S]{}, false, nil
		case err != nil:
			return s, false, err
		case first && e.ID != snap.EventID:
			return state[S]{}, false, nil
		case first:
			first, s.version, s.eventID, s.saved = false, snap.Version, snap.EventID, snap.Version
			s.closed = e.Type == eventstore.TypeClosed
		default:
			if err := r.kind.advance(&s, e); err != nil {
				return s, false, err
			}
		}
	}
	if first {
		return state[S]{}, false, nil
	}
	return s, true, nil
}

// save stores a snapshot, if enough events came since the last one. What fails is tried again after
// as many events: nothing depends on it.
func (r *Repository[S, E]) save(id string, s *state[S]) {
	if r.kind.every == 0 || s.version-s.saved < int64(r.kind.every) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	s.saved = s.version
	data, contentType, err := engine.Marshal(r.store.Bus(), s.value)
	if err == nil {
		err = r.store.SaveSnapshot(ctx, r.kind.Stream(id), eventstore.Snapshot{
			Schema: r.kind.schema, Version: s.version, EventID: s.eventID, ContentType: contentType, State: data,
		})
	}
	if err != nil && !errors.Is(err, bus.ErrClosed) { // a bus may be closed right after the last answer
		r.store.Bus().Logger().Warn("a snapshot was not stored", "kind", r.kind.name, "err", err)
	}
}

// Command is a command that decides by itself. EventKey returns the aggregate's id. Decide is a
// [Decision].
type Command[S, E any] interface {
	bus.Keyer
	Decide(state S) ([]E, error)
}

// Handle returns the handler of commands of type C: it executes each with [Repository.Do] on the
// aggregate that the command names.
func Handle[C Command[S, E], S, E any](r *Repository[S, E]) func(context.Context, C) (eventstore.Appended, error) {
	return func(ctx context.Context, c C) (eventstore.Appended, error) { return r.Do(ctx, c.EventKey(), c.Decide) }
}
