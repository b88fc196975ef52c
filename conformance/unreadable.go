package conformance

import (
	"bytes"
	"errors"
	"slices"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/poison"
)

// unreadableRecord is what no driver writes.
var unreadableRecord = []byte(`["no entry"]`) // some databases take JSON only

// poisonUnreadable: a stored record that cannot be read is an entry that can be viewed, counted and
// dropped. It keeps no other entry from being listed, replayed or dropped, or from being stored.
func poisonUnreadable(e *env) {
	if e.o.RawPoison == nil {
		e.lacking("nothing was said about how to store a record that the driver cannot read")
	}
	b := e.bus()
	group := e.name("g0") // of refused
	q, err := poison.Open(e.ctx, b, group)
	e.must(err, "open the poison queue")
	_, books := e.refused(b, 3)
	e.must(e.o.RawPoison(e.ctx, b, group, unreadableRecord), "store a record that cannot be read")
	e.publish(b, e.name("refused"), &bus.Message{ID: "behind", Key: "k9"}) // it is accepted by now
	e.wait("a message behind it", func() bool { return books[0].count() == 1 })
	s, err := driver.Of(b).Poison(e.ctx, group)
	e.must(err, "open the poison store")
	behind := driver.PoisonEntry{ID: "behind", Message: &bus.Message{ID: "b"}, Topic: e.name("gone"), Group: group, Failure: bus.Failure{Class: "c"}}
	e.must(s.Put(e.ctx, behind), "store an entry behind it")

	bad := e.unreadable(q, group, 5)
	_, err = q.Drop(e.ctx, poison.Filter{IDs: []string{"behind"}}, poison.Options{})
	e.must(err, "drop the entry behind it")
	if _, ok := bus.As[driver.Injector](b); ok {
		r, err := q.Replay(e.ctx, poison.Filter{}, poison.Options{})
		if !errors.Is(err, bus.ErrInvalid) || r.Matched != 4 || r.Done != 3 {
			e.errorf("of 4 entries, one of them unreadable, %d were replayed of %d: %v", r.Done, r.Matched, err)
		}
		e.wait("the others to be replayed", func() bool { return books[0].count() == 4 })
		if left := e.unreadable(q, group, 1); left.ID != bad.ID {
			e.errorf("the entry was named %q, and then %q", bad.ID, left.ID)
		}
	}
	r, err := q.Drop(e.ctx, poison.Filter{Class: driver.Unreadable}, poison.Options{})
	e.must(err, "drop what cannot be read")
	if _, err := q.Get(e.ctx, bad.ID); r.Done != 1 || !errors.Is(err, bus.ErrNotFound) {
		e.errorf("%d entries were dropped, and then get says %v", r.Done, err)
	}
}

// unreadable returns the entry of the record that cannot be read, one of n.
func (e *env) unreadable(q *poison.Queue, group string, n int) driver.PoisonEntry {
	var bad []driver.PoisonEntry
	var ids []string
	for entry, err := range q.List(e.ctx, poison.Filter{}) {
		e.must(err, "list the poison queue")
		if ids = append(ids, entry.ID); entry.Failure.Class == driver.Unreadable {
			bad = append(bad, entry)
		}
	}
	if len(ids) != n || len(bad) != 1 {
		e.fatalf("the queue has %d entries, of which %d are unreadable, want %d and 1: %q", len(ids), len(bad), n, ids)
	}
	if at := slices.Index(ids, bad[0].ID); n == 5 && (at != 3 || ids[4] != "behind") {
		e.errorf("the record that was stored last but one is listed at place %d of %q", at, ids)
	}
	got, err := q.Get(e.ctx, bad[0].ID)
	e.must(err, "look at what cannot be read")
	if got.ID == "" || got.Group != group || got.Message == nil || !bytes.Equal(got.Message.Payload, unreadableRecord) || got.Failure.Text == "" {
		e.errorf("the record is the entry %+v of %+v", got, got.Message)
	}
	count, err := q.Count(e.ctx, poison.Filter{Class: driver.Unreadable})
	e.must(err, "count what cannot be read")
	sums, err := q.Summaries(e.ctx, poison.Filter{})
	e.must(err, "sum up")
	if count != 1 || !slices.ContainsFunc(sums, func(s poison.Summary) bool { return s.Class == driver.Unreadable && s.Count == 1 }) {
		e.errorf("of one record that cannot be read, %d are counted; the summaries are %+v", count, sums)
	}
	return got
}
