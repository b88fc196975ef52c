package eventstore

import (
	"context"
	"fmt"
	"strconv"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Expected is the state that a stream must be in for an append: [New], [Any], [Exists] or [At]. Its
// zero value is New.
type Expected struct{ version int64 }

var (
	// New expects a stream without events.
	New = At(0)
	// Any expects nothing.
	Any = Expected{-1}
	// Exists expects a stream that has events.
	Exists = Expected{-2}
)

// At expects a stream whose last event has this version; 0 is [New]. A negative version is an
// error of the append.
func At(version int64) Expected { return Expected{version} }

// Version returns the version of [At], -1 for [Any] and -2 for [Exists].
func (e Expected) Version() int64 { return e.version }

// Met reports whether a stream with this version, 0 if it has no events, is as expected.
func (e Expected) Met(version int64) bool {
	return e.version == version || e == Any || e == Exists && version > 0
}

// String spells the expectation, for error texts: "version 7".
func (e Expected) String() string {
	switch {
	case e == New:
		return "no events"
	case e == Any:
		return "any version"
	case e == Exists:
		return "events"
	}
	return "version " + strconv.FormatInt(e.version, 10)
}

// Position is a place in the store. Positions grow along each stream, and have gaps. The first
// event's position is above 0, so 0 is the beginning for [Store.All] and [Store.Follow].
type Position int64

// Appended says where events were appended.
type Appended struct {
	// Version and Position are those of the stream's last event that was appended.
	Version  int64
	Position Position
	// Repeated: the same events, by their ids, were there already from the expected version on.
	// Nothing was written.
	Repeated bool
}

// Append appends events to a stream, all or none, and returns when they are committed. Events are
// what bus.Publish takes: values that the bus encodes, or messages. The stream replaces their keys.
// Headers of ctx (bus.ContextWithHeaders) become theirs. A stream begins with its first event; its
// name has 1 to 255 bytes.
//
// Errors, found with errors.As and errors.Is:
//   - [*Conflict]: the stream is not as expected. Nothing was appended.
//   - [ErrClosed]: the stream was closed. Nothing was appended.
//   - bus.ErrInvalid, bus.ErrTooLarge: the arguments are wrong. Nothing was appended.
//   - any other: if bus.IsDefinite is false, the events may be there. Append the same messages, with
//     the same ids, at the same version again: see [Appended.Repeated]. Bus.Encode makes messages
//     with ids. With [At] and [New] Append asks again by itself as long as ctx lasts.
//
// Append may be called concurrently. Calls that come together share a transaction, and fail or
// succeed each by itself. The calls of one process for one stream are carried out in their order.
func (s *Store) Append(ctx context.Context, stream string, expected Expected, events ...any) (Appended, error) {
	done, err := s.AppendAll(ctx, To(stream, expected, events...))
	if err != nil {
		return Appended{}, err
	}
	return done[0], nil
}

// Write is one stream's part of [Store.AppendAll]; [To] makes it.
type Write struct {
	stream   string
	expected Expected
	events   []any
}

// To makes the [Write] that appends events to a stream.
func To(stream string, expected Expected, events ...any) Write {
	return Write{stream, expected, events}
}

// AppendAll appends to several streams, all or nothing. The result is index-aligned with the
// writes. Each stream may occur once, and all events together are bounded by [MaxEvents]. Errors
// are those of [Store.Append]; a conflict is that of the first write whose stream is not as
// expected.
func (s *Store) AppendAll(ctx context.Context, writes ...Write) ([]Appended, error) {
	parts, err := s.parts(ctx, writes)
	if err != nil {
		return nil, err
	}
	done, err := s.backend.Append(ctx, parts)
	if err != nil {
		return nil, s.fail("append to", writes[0].stream, err)
	}
	return done, nil
}

// parts checks and encodes writes.
func (s *Store) parts(ctx context.Context, writes []Write) ([]Part, error) {
	total := 0
	seen := make(map[string]bool, len(writes))
	for _, w := range writes {
		if seen[w.stream] {
			return nil, s.fail("append to", w.stream, fmt.Errorf("%w: the stream is written twice in one call", bus.ErrInvalid))
		}
		seen[w.stream] = true
		total += len(w.events)
	}
	if total == 0 || total > s.maxEvents {
		return nil, s.fail("append", "", fmt.Errorf("%w: %d events: want 1 to %d in one call", bus.ErrInvalid, total, s.maxEvents))
	}
	parts := make([]Part, len(writes))
	for i, w := range writes {
		var err error
		if parts[i], err = s.part(ctx, w); err != nil {
			return nil, s.fail("append to", w.stream, err)
		}
	}
	return parts, nil
}

func (s *Store) part(ctx context.Context, w Write) (Part, error) {
	if err := checkStream(w.stream); err != nil {
		return Part{}, err
	}
	if w.expected.version < Exists.version {
		return Part{}, fmt.Errorf("%w: At(%d): want 0 or more", bus.ErrInvalid, w.expected.version)
	}
	if len(w.events) == 0 {
		return Part{}, fmt.Errorf("%w: there are no events for the stream", bus.ErrInvalid)
	}
	msgs, err := s.bus.Encode(ctx, w.events, withStream(w.stream))
	if err != nil {
		return Part{}, err
	}
	for i, m := range msgs {
		if err := checkEvent(m); err != nil {
			return Part{}, fmt.Errorf("event %d: %w", i, err)
		}
	}
	return Part{Stream: w.stream, Expected: w.expected, Events: msgs}, nil
}

// checkEvent refuses messages that a store does not take.
func checkEvent(m *bus.Message) error {
	if m.Type == TypeClosed {
		return fmt.Errorf("%w: the event has the type %s: use CloseStream", bus.ErrInvalid, TypeClosed)
	}
	if m.Headers.Get(bus.HeaderDeliverAt) != "" {
		return fmt.Errorf("%w: the event has a delivery time, and an event of a store has happened already", bus.ErrInvalid)
	}
	return nil
}

// withStream makes a message one of the stream. An event that was received from a store is not at
// its old place any more.
func withStream(stream string) bus.PublishOption {
	return func(m *bus.Message) {
		m.Key = stream
		m.Headers.Del(HeaderVersion)
		m.Headers.Del(HeaderPosition)
	}
}

func checkStream(stream string) error {
	if stream == "" || len(stream) > 255 {
		return fmt.Errorf("%w: the name of a stream has %d bytes: want 1 to 255", bus.ErrInvalid, len(stream))
	}
	return nil
}

// In returns the store in a transaction of its database: what it appends is committed, or rolled
// back, with whatever else is in tx. tx is a *sql.Tx, or a pgx.Tx wrapped by pgxoutbox.Tx. Memory
// has no transactions: appending there is bus.ErrUnsupported.
func (s *Store) In(tx driver.Execer) *Tx { return &Tx{s, tx} }

// Tx is a store in a transaction. It is as safe for concurrent use as the transaction is.
type Tx struct {
	store *Store
	tx    driver.Execer
}

// Append appends events to a stream as [Store.Append] does, and returns the version of the last
// one. expected must be [New] or [At]: with the others nobody could tell the version.
//
// Call it last, right before the commit. From here on readers of the store wait for the
// transaction; on MySQL and SQLite writers do, too, and on PostgreSQL writers of the same stream.
// PostgreSQL ends the transaction if it stands still for a minute after that, unless the session
// has an idle_in_transaction_session_timeout of its own.
//
// After any error roll back. A [*Conflict] has -1 for the actual version here, and also stands for
// a stream that is closed.
func (t *Tx) Append(ctx context.Context, stream string, expected Expected, events ...any) (version int64, err error) {
	s := t.store
	if expected.version < 0 {
		return 0, s.fail("append to", stream, fmt.Errorf("%w: in a transaction, expect New or At: an append there cannot return the version", bus.ErrInvalid))
	}
	parts, err := s.parts(ctx, []Write{To(stream, expected, events...)})
	if err != nil {
		return 0, err
	}
	if err := s.backend.AppendIn(ctx, t.tx, parts[0]); err != nil {
		return 0, s.fail("append to", stream, err)
	}
	return expected.version + int64(len(events)), nil
}
