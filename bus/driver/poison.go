package driver

import (
	"context"
	"iter"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// PoisonStore keeps what a group could not handle, until somebody looks. Entries do not expire.
type PoisonStore interface {
	// Put stores entries durably. An entry with the ID of a stored one replaces it, at its place or as the newest.
	Put(ctx context.Context, entries ...PoisonEntry) error
	// List yields all entries, oldest first, without disturbing them. It ends after the first error. A record that cannot be read is
	// an entry of class [Unreadable], which Remove deletes like any other; it never fails the listing.
	List(ctx context.Context) iter.Seq2[PoisonEntry, error]
	// Remove deletes entries; unknown ids are no error.
	Remove(ctx context.Context, ids ...string) error
}

// PoisonEntry is a message that could not be handled, and why.
type PoisonEntry struct {
	// ID names the entry in its store.
	ID string
	// Message is the original, byte for byte.
	Message *bus.Message
	// Topic, Group, Lane and Position say where it came from; Handler who refused it ("" if none was found).
	Topic, Group, Handler string
	Lane                  int32
	Position              int64
	Failure               bus.Failure
	// Waits is set if the message is parked, too, at Lane and Position, and its key waits until it is replayed or dropped.
	Waits bool
	// Host is where it failed last.
	Host string
	// Time is when it was put here.
	Time time.Time
}

// Unreadable is the [bus.Failure.Class] of a stored record that its driver cannot read: somebody else wrote it, or it was damaged. The
// payload of such an entry's Message is the record's own bytes. It can be looked at and dropped, not replayed.
const Unreadable = "unreadable"
