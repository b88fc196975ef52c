package driver

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"iter"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// PoisonStore keeps messages that a group could not handle, until somebody looks. Entries do not
// expire.
type PoisonStore interface {
	// Put stores entries durably. An entry with a stored ID replaces the stored entry, at its place
	// or as the newest.
	Put(ctx context.Context, entries ...PoisonEntry) error
	// List yields all entries, oldest first, without disturbing them. It ends after the first
	// error. A record that cannot be read never fails the listing: it is an entry of class
	// [Unreadable], which Remove deletes like any other.
	List(ctx context.Context) iter.Seq2[PoisonEntry, error]
	// Remove deletes entries. An unknown id is no error.
	Remove(ctx context.Context, ids ...string) error
}

// PoisonEntry is a message that could not be handled, and the reason.
type PoisonEntry struct {
	// ID names the entry in its store. The router takes it from [PoisonEntry.NaturalID].
	ID string
	// Message is the original, byte for byte.
	Message *bus.Message
	// Topic, Group, Lane and Position say where the message came from. Handler names the handler
	// that refused it, or is "" if the router found none.
	Topic, Group, Handler string
	Lane                  int32
	Position              int64
	Failure               bus.Failure
	// Waits: the message is also parked, at Lane and Position, and its key waits until it is
	// replayed or dropped.
	Waits bool
	// Host is the host of the last failure.
	Host string
	// Time is when the entry was stored.
	Time time.Time
}

// Unreadable is the [bus.Failure.Class] of a stored record that its driver cannot read, because it
// is foreign or damaged. The payload of such an entry's Message holds the record's bytes. The entry
// can be viewed and dropped, not replayed.
const Unreadable = "unreadable"

// NaturalID returns an id made of the topic, the whole message and the number of its replays. The
// message has the same id in each lane, ownership and place in which it comes to the group again. So
// whoever puts the entry once more replaces it. A message that fails after a replay has another id,
// because the replay is about to remove the entry of the failure before.
//
// Messages with equal ids that differ in anything else have different natural ids. Messages that
// are equal in all their fields, times included, are one message.
func (e *PoisonEntry) NaturalID() string {
	m := e.Message
	b := binary.AppendUvarint(nil, uint64(e.Failure.Replays))
	for _, s := range []string{e.Topic, m.ID, m.Key, m.Type, m.Source, m.Subject, m.ContentType} {
		b = appendText(b, s)
	}
	b = binary.AppendVarint(b, m.Time.UnixNano())
	b = binary.AppendUvarint(b, uint64(len(m.Headers)))
	for _, h := range m.Headers {
		b = appendText(appendText(b, h.Name), h.Value)
	}
	if m.Payload != nil { // a tombstone is no empty payload
		b = append(b, 1)
	}
	hash := sha256.New()
	hash.Write(b)
	hash.Write(m.Payload)
	return hex.EncodeToString(hash.Sum(nil)[:16])
}

// appendText appends a text behind its length, so that no two lists of texts are alike.
func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}
