package eventstore

import (
	"errors"
	"fmt"
)

// Conflict is the error of an append to a stream that is not as expected. Nothing was appended.
// Repeating the same append conflicts again, so bus.IsRetryable is false: read the stream, and
// decide anew.
type Conflict struct { //nolint:errname // as users say it: errors.As to a *eventstore.Conflict
	// Stream is the stream's name.
	Stream string
	// Expected is the state that the append asked for.
	Expected Expected
	// Actual is the version that the stream has, 0 if it has no events. It is -1 in a transaction
	// of the caller, where it cannot be read.
	Actual int64
}

// Error implements error.
func (c *Conflict) Error() string {
	if c.Actual < 0 {
		return fmt.Sprintf("stream %q has another version: expected %v", c.Stream, c.Expected)
	}
	return fmt.Sprintf("stream %q has version %d: expected %v", c.Stream, c.Actual, c.Expected)
}

var (
	// ErrClosed is wrapped by the error of an append to a stream that [Store.CloseStream] has
	// closed.
	ErrClosed = errors.New("the stream is closed")
	// ErrUnknownType is wrapped by the error of [Types.Decode] for an event whose type the family
	// does not name.
	ErrUnknownType = errors.New("no type for the event")
	// ErrTruncated is wrapped by the error of [Store.Read] from a version that [Store.Truncate] has
	// removed.
	ErrTruncated = errors.New("events before were removed")
)
