package eventstore

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Recorded is an event as it is stored. Like a message that a handler receives, it may be kept, and
// its payload and headers must not be changed.
type Recorded struct {
	*bus.Message
	// Stream is the message's key. Version is the event's place in the stream, from 1 on, and
	// Position its place in the store.
	Stream   string
	Version  int64
	Position Position

	bus *bus.Bus // decodes it; nil: JSON
}

// Decode decodes the event's payload into v, a pointer, with the store's codec for its content
// type. [Types.Decode] finds the Go type by itself.
func (r Recorded) Decode(v any) error {
	if r.bus == nil {
		return bus.JSON.Unmarshal(r.Payload, v)
	}
	return r.bus.Decode(r.Message, v)
}

// Headers that a message of a store has when a group receives it: version and position in decimal.
// [Store.Recorded] reads them.
const (
	HeaderVersion  = "streamversion"
	HeaderPosition = "streamposition"
)

// Recorded returns the event that a group of the store's topic has received as a message. A message
// that did not come from a store is an error.
func (s *Store) Recorded(m *bus.Message) (Recorded, error) {
	version, err := strconv.ParseInt(m.Headers.Get(HeaderVersion), 10, 64)
	if err != nil {
		return Recorded{}, fmt.Errorf("eventstore: message %q is no event of a store: header %s: %w", m.ID, HeaderVersion, err)
	}
	position, err := strconv.ParseInt(m.Headers.Get(HeaderPosition), 10, 64)
	if err != nil {
		return Recorded{}, fmt.Errorf("eventstore: message %q is no event of a store: header %s: %w", m.ID, HeaderPosition, err)
	}
	return Recorded{Message: m, Stream: m.Key, Version: version, Position: Position(position), bus: s.bus}, nil
}

// page is how many events are read at once.
const page = 1000

// Read reads a stream in its order, from the event with the version from on, up to its end at the
// time; with 0, from the first that is there. A stream that does not exist has no events. If the
// event at from was removed, the error wraps [ErrTruncated]. The sequence ends with its first
// error.
func (s *Store) Read(ctx context.Context, stream string, from int64) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		for next := from; ; {
			events, err := s.backend.Read(ctx, stream, next, page)
			if err == nil && next > 0 && len(events) > 0 && events[0].Version != next {
				err = fmt.Errorf("version %d: %w: the first is version %d", next, ErrTruncated, events[0].Version)
			}
			if err != nil {
				yield(Recorded{}, s.fail("read", stream, err))
				return
			}
			if !s.yield(events, yield) || len(events) < page {
				return
			}
			next = events[len(events)-1].Version + 1
		}
	}
}

// Back reads a stream from its end to its beginning. To know its last event, take the first one and
// break: that reads no more. The sequence ends with its first error.
func (s *Store) Back(ctx context.Context, stream string) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		for size, before := 1, int64(0); ; size = page { // most want the last event only
			events, err := s.backend.Back(ctx, stream, before, size)
			if err != nil {
				yield(Recorded{}, s.fail("read", stream, err))
				return
			}
			if !s.yield(events, yield) || len(events) < size {
				return
			}
			before = events[len(events)-1].Version
		}
	}
}

// All reads all streams in the order of positions, beginning after a position, up to the last event
// when it began. It never passes over an event whose transaction commits late. It ends before such
// an event instead, so what it yields may be short of events that were committed behind one; go on
// later after the last position, or use [Store.Follow], which waits. The sequence ends with its
// first error.
func (s *Store) All(ctx context.Context, after Position) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		last, err := s.backend.Last(ctx)
		if err != nil {
			yield(Recorded{}, s.fail("read", "", err))
			return
		}
		scan := s.backend.Scan(after)
		defer scan.Close()
		for {
			events, err := scan.Next(ctx)
			if err != nil {
				yield(Recorded{}, s.fail("read", "", err))
				return
			}
			old := slices.IndexFunc(events, func(e Recorded) bool { return e.Position > last })
			if old < 0 {
				old = len(events)
			}
			if !s.yield(events[:old], yield) || old == 0 || old < len(events) {
				return
			}
		}
	}
}

// Follow reads all streams in the order of positions, beginning after a position, and waits for
// more at the end. Events of this process come at once, those of others after a notification
// (PostgreSQL) or by looking, every poll interval of the bus (250 ms by default). While the
// database is away it tries again. It ends with ctx or the bus, whose error it yields.
func (s *Store) Follow(ctx context.Context, after Position) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		scan := s.backend.Scan(after)
		defer scan.Close()
		for {
			events, err := scan.Next(ctx)
			if err == nil && len(events) == 0 {
				err = scan.Wait(ctx)
			}
			if err != nil {
				yield(Recorded{}, s.fail("follow", "", err))
				return
			}
			if !s.yield(events, yield) {
				return
			}
		}
	}
}

func (s *Store) yield(events []Recorded, yield func(Recorded, error) bool) bool {
	for _, e := range events {
		e.bus = s.bus
		if !yield(e, nil) {
			return false
		}
	}
	return true
}

// Head returns a position up to which everything can be read, and which all later appends exceed.
// On PostgreSQL it waits for transactions that have appended and are still open.
func (s *Store) Head(ctx context.Context) (Position, error) {
	head, err := s.backend.Head(ctx)
	if err != nil {
		return 0, s.fail("head", "", err)
	}
	return head, nil
}

// Before returns the position before the first event that was stored at t or later, by the clock of
// the database; [Store.All] after it begins there. Note: events that were stored shortly before t,
// by at most a minute, may follow. If nothing was stored since t it is [Store.Head], for which it
// waits.
func (s *Store) Before(ctx context.Context, t time.Time) (Position, error) {
	p, err := s.backend.Before(ctx, t)
	if err != nil {
		return 0, s.fail("position at a time", "", err)
	}
	return p, nil
}
