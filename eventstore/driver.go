package eventstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Host is an optional ability of a bus's driver, found with bus.As: its topics can be event stores.
// It is for authors of drivers; package internal/storetest has the tests. The driver appends
// messages published to a store's topic as [Published] says. The messages that groups of the topic
// receive have the headers [HeaderVersion] and [HeaderPosition].
type Host interface {
	// OpenStore opens the store in a topic, and creates it with so many shards if there is no such
	// topic. The error wraps bus.ErrInvalid if the topic exists and is no store.
	OpenStore(ctx context.Context, topic string, shards int) (Backend, error)
}

// Part is the part of an append that goes to one stream. The messages are complete, and have the
// stream as their key. A driver may keep them beyond the call, and must not change them.
type Part struct {
	Stream   string
	Expected Expected
	Events   []*bus.Message
}

// Published returns the part of a message that is published to the topic of a store: any version of
// the stream that is its key. It fails for what no store takes.
func Published(m *bus.Message) (Part, error) {
	if err := checkStream(m.Key); err != nil {
		return Part{}, fmt.Errorf("the topic is an event store, and the key names the stream: %w", err)
	}
	if err := checkEvent(m); err != nil {
		return Part{}, err
	}
	if m.Headers.Get(HeaderVersion) != "" || m.Headers.Get(HeaderPosition) != "" {
		c := *m
		c.Headers = slices.Clone(m.Headers)
		withStream(m.Key)(&c)
		m = &c
	}
	return Part{Stream: m.Key, Expected: Any, Events: []*bus.Message{m}}, nil
}

// Backend is the store of one topic. All methods are safe for concurrent use. Errors are *bus.Error
// values, also those that wrap [ErrClosed] or a [*Conflict]; Definite says that nothing was
// appended.
type Backend interface {
	// Append appends all parts or none. Each has another stream. The result is index-aligned.
	Append(ctx context.Context, parts []Part) ([]Appended, error)
	// AppendIn appends in a transaction of the caller. A stream that is closed is a [*Conflict],
	// too.
	AppendIn(ctx context.Context, tx driver.Execer, part Part) error

	// Read returns the first events of a stream from a version on, Back the last ones before a
	// version, the last one first; 0 is the end.
	Read(ctx context.Context, stream string, from int64, limit int) ([]Recorded, error)
	Back(ctx context.Context, stream string, before int64, limit int) ([]Recorded, error)
	// Scan begins to read all streams after a position.
	Scan(after Position) Scan
	// Head returns the position up to which everything can be read, and that later appends exceed.
	// Last returns that of the last event, or a later one, and waits for nobody.
	Head(ctx context.Context) (Position, error)
	Last(ctx context.Context) (Position, error)
	// Before returns the position before the first event that was stored at t or later.
	Before(ctx context.Context, t time.Time) (Position, error)

	// Streams lists streams by name, after one.
	Streams(ctx context.Context, prefix, after string, limit int) ([]StreamInfo, error)
	// Truncate removes events, except for the last one and those that a group has not finished. It
	// returns the first version that is left.
	Truncate(ctx context.Context, stream string, before int64) (first int64, err error)

	// Snapshot returns the stream's snapshot, or a zero one. SaveSnapshot replaces it, unless it
	// has the same schema and a later version.
	Snapshot(ctx context.Context, stream string) (Snapshot, error)
	SaveSnapshot(ctx context.Context, stream string, snap Snapshot) error
}

// Scan reads all streams in the order of positions. It has one user at a time.
type Scan interface {
	// Next returns the next events; none if nothing more is safe to read at the moment.
	Next(ctx context.Context) ([]Recorded, error)
	// Wait waits until there may be more.
	Wait(ctx context.Context) error
	// Close ends the scan.
	Close()
}
