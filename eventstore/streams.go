package eventstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/reserved"
)

// StreamInfo is a stream at a glance.
type StreamInfo struct {
	// Name is the stream's name.
	Name string
	// First and Last are the versions of its first event that is there, and of its last one.
	First, Last int64
	// Closed says that the stream takes no more events.
	Closed bool
	// Changed is when its last event was stored, by the database's clock.
	Changed time.Time
}

// Streams lists the streams whose names begin with prefix, in the order of their bytes; "" is all.
// Streams of a kind "order" have the prefix "order-". The sequence ends with its first error.
func (s *Store) Streams(ctx context.Context, prefix string) iter.Seq2[StreamInfo, error] {
	return func(yield func(StreamInfo, error) bool) {
		for after := ""; ; {
			streams, err := s.backend.Streams(ctx, prefix, after, page)
			if err != nil {
				yield(StreamInfo{}, s.fail("list streams", "", err))
				return
			}
			for _, info := range streams {
				if !yield(info, nil) {
					return
				}
			}
			if len(streams) < page {
				return
			}
			after = streams[len(streams)-1].Name
		}
	}
}

// Truncate removes the events of a stream before a version, and returns the first version that is
// left. The last event always stays. So do events that a group of the store's topic has not handled
// yet: truncate again later to remove them. A stream without events is bus.ErrNotFound.
func (s *Store) Truncate(ctx context.Context, stream string, before int64) (first int64, err error) {
	if err = checkStream(stream); err == nil {
		first, err = s.backend.Truncate(ctx, stream, before)
	}
	if err != nil {
		return 0, s.fail("truncate", stream, err)
	}
	return first, nil
}

// TypeClosed is the type of the event with which a closed stream ends. It has no payload, and each
// [Types] ignores it. Appending an event of this type is an error.
const TypeClosed = reserved.TypeStreamClosed

// CloseStream ends a stream: it appends an event of type [TypeClosed], which groups receive, too.
// Appends fail with [ErrClosed] from then on; a stream cannot be opened again. Closing a closed
// stream does nothing. A stream without events is bus.ErrNotFound.
func (s *Store) CloseStream(ctx context.Context, stream string) error {
	if err := checkStream(stream); err != nil {
		return s.fail("close", stream, err)
	}
	msgs, err := s.bus.Encode(ctx, []any{&bus.Message{Type: TypeClosed, Key: stream, Payload: []byte{}}})
	if err == nil {
		_, err = s.backend.Append(ctx, []Part{{Stream: stream, Expected: Exists, Events: msgs}})
	}
	var conflict *Conflict
	switch {
	case err == nil, errors.Is(err, ErrClosed):
		return nil
	case errors.As(err, &conflict):
		err = fmt.Errorf("the stream has no events: %w", bus.ErrNotFound)
	}
	return s.fail("close", stream, err)
}

// Snapshot is a state that was made of the events of a stream. The store keeps one for each stream,
// beside the events. Package aggregate uses them.
type Snapshot struct {
	// Schema is the number of what State means. A reader of another schema ignores it.
	Schema int
	// Version is that of the last event in the state, and EventID its id.
	Version int64
	EventID string
	// State is encoded as ContentType says.
	ContentType string
	State       []byte
}

// Snapshot returns the snapshot of a stream; its Version is 0 if there is none. Note: it may be of
// another schema, and after a restore of the database it need not fit the stream. Check that the
// event at Version has the id EventID before you use it.
func (s *Store) Snapshot(ctx context.Context, stream string) (Snapshot, error) {
	snap, err := s.backend.Snapshot(ctx, stream)
	if err != nil {
		return Snapshot{}, s.fail("read the snapshot of", stream, err)
	}
	return snap, nil
}

// SaveSnapshot stores the snapshot of a stream in place of the one before. It does nothing if that one
// has the same schema and a later version: the caller was slow, and the beginning of the stream may
// have been removed since.
func (s *Store) SaveSnapshot(ctx context.Context, stream string, snap Snapshot) error {
	err := checkStream(stream)
	if err == nil {
		err = s.backend.SaveSnapshot(ctx, stream, snap)
	}
	if err != nil {
		return s.fail("save the snapshot of", stream, err)
	}
	return nil
}
