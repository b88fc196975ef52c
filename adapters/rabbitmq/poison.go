package rabbitmq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/stored"
)

// poisonStore keeps a group's entries in a stream queue: a log of puts and removals. Any number of
// readers read it without disturbing each other. (From an ordinary queue they would take the
// entries away from each other while they read. Removing one entry would mean reading all of them.)
//
// A stream has no end to read up to. So a reader appends a fence, and reads up to the fence.
type poisonStore struct {
	d      *busDriver
	group  string
	stream string
}

// Headers of the records in the stream.
const (
	poisonHeader = "millrace-poison" // the kind of record
	entryHeader  = "millrace-entry"  // put: the entry's id; fence: its name
	offsetHeader = "x-stream-offset" // the broker's
)

const (
	poisonPut    = "put"
	poisonRemove = "remove"
	poisonFence  = "fence"
)

// Poison implements driver.Driver.
func (d *busDriver) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	if err := driver.CheckName("group", group); err != nil {
		return nil, fail("poison", "", err)
	}
	p := &poisonStore{d: d, group: group, stream: poisonName(group)}
	if err := p.declare(ctx); err != nil {
		return nil, fail("poison", "", err)
	}
	return p, nil
}

// declare makes the stream unless it is there. Only one process at a time declares it. While
// another process is just declaring a stream, the broker says that it is there. It ends the
// connection of a publisher that publishes to the stream too early (seen on 3.10.8).
func (p *poisonStore) declare(ctx context.Context) error {
	s, err := p.d.pub.link.GetUnblocked(ctx)
	if err != nil {
		return err
	}
	_, err = call(ctx, s, func(ctx context.Context, t *topology) (struct{}, error) {
		unlock, err := p.d.lockFor(ctx, t, p.stream)
		if err != nil {
			return struct{}{}, err
		}
		defer unlock()
		return struct{}{}, t.declareQueue(p.stream, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeStream})
	})
	return err
}

// Put implements driver.PoisonStore.
func (p *poisonStore) Put(ctx context.Context, entries ...driver.PoisonEntry) error {
	return p.append(ctx, "poison put", len(entries), func(i int, x *amqplink.Parcel) (err error) {
		x.Key = p.stream
		x.Publishing, err = encodeEntry(&entries[i])
		return err
	})
}

// Remove implements driver.PoisonStore.
func (p *poisonStore) Remove(ctx context.Context, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	list := make([][]byte, len(ids)) // any bytes
	for i, id := range ids {
		list[i] = []byte(id)
	}
	body, err := json.Marshal(list)
	if err != nil {
		return fail("poison remove", "", err)
	}
	return p.append(ctx, "poison remove", 1, func(_ int, x *amqplink.Parcel) error {
		*x = p.record(poisonRemove, "", body)
		return nil
	})
}

// record makes a record without an entry. Streams keep no lists in headers (seen on 3.10.8), so
// lists go to the body.
func (p *poisonStore) record(kind, name string, body []byte) amqplink.Parcel {
	return amqplink.Parcel{Key: p.stream, Publishing: amqp.Publishing{
		Headers: amqp.Table{poisonHeader: kind, entryHeader: name}, DeliveryMode: amqp.Persistent, Body: body,
	}}
}

// append publishes records. If the stream is gone, it makes it and tries again.
func (p *poisonStore) append(ctx context.Context, op string, n int, fill func(i int, x *amqplink.Parcel) error) error {
	if n == 0 {
		return nil
	}
	if !p.d.enter() {
		return fail(op, "", bus.ErrClosed)
	}
	defer p.d.calls.Done()
	err := p.d.pub.send(ctx, n, fill)
	if errors.Is(err, amqplink.ErrReturned) {
		if err = p.declare(ctx); err == nil {
			err = p.d.pub.send(ctx, n, fill)
		}
	}
	if err != nil {
		return fail(op, "", err)
	}
	return nil
}

func encodeEntry(e *driver.PoisonEntry) (amqp.Publishing, error) {
	pub, err := encodeStored(e.Message, stored.EntryOf(e))
	if err != nil {
		return pub, err
	}
	pub.Headers[poisonHeader] = poisonPut
	pub.Headers[entryHeader] = e.ID
	return pub, nil
}

// decodeEntry reads an entry. A record that cannot be read is an entry, too, and so is a record of
// somebody else.
func decodeEntry(d *amqp.Delivery, id, group string) driver.PoisonEntry {
	var facts stored.Entry
	err := errors.New("the record is no entry of a poison queue")
	var m *bus.Message
	if text(d.Headers[poisonHeader]) == poisonPut {
		m, err = decodeStored(d, &facts, poisonHeader, entryHeader, offsetHeader)
	}
	if err != nil {
		m, failure := unreadable(d, id, err)
		return driver.PoisonEntry{ID: id, Message: m, Group: group, Failure: *failure, Time: m.Time}
	}
	return facts.Of(id, m)
}

// List implements driver.PoisonStore. It reads the stream twice: first to learn which entries are
// there, then for the entries. So it keeps their ids in memory, and not the entries.
func (p *poisonStore) List(ctx context.Context) iter.Seq2[driver.PoisonEntry, error] {
	return func(yield func(driver.PoisonEntry, error) bool) {
		there, err := p.scan(ctx)
		// A stream that was just declared cannot always be read yet: "Stream not found".
		for n := 0; n < newStreamTries && amqplink.HasCode(err, amqp.ResourceError) && backoff.Sleep(ctx, backoff.Pause(n+1)); n++ {
			there, err = p.scan(ctx)
		}
		if err == nil && len(there.entries) > 0 {
			err = p.read(ctx, there.first, func(offset int64, d *amqp.Delivery) (more bool, err error) {
				if offset >= there.end { // the others were cut off meanwhile, by a policy
					return false, nil
				}
				id := entryID(d, offset)
				if at, ok := there.entries[id]; !ok || at != offset {
					return true, nil
				}
				delete(there.entries, id)
				return yield(decodeEntry(d, id, p.group), nil) && len(there.entries) > 0, nil
			})
		}
		if err != nil {
			yield(driver.PoisonEntry{}, fail("poison list", "", err))
		}
	}
}

// entryID is the id of the entry that a record is. A record without one is named by its place.
func entryID(d *amqp.Delivery, offset int64) string {
	if id := text(d.Headers[entryHeader]); id != "" && text(d.Headers[poisonHeader]) == poisonPut {
		return id
	}
	return fmt.Sprintf("offset-%d", offset)
}

// newStreamTries are made while the server says that a stream does not exist which it has
// confirmed: some seconds.
const newStreamTries = 6

// noOffset is before all offsets.
const noOffset = -1

// extent describes the content of a stream at one moment.
type extent struct {
	entries map[string]int64 // offsets of the entries that were stored, by id
	first   int64            // the lowest of them
	end     int64            // behind all of them
}

// scan reads the stream once.
func (p *poisonStore) scan(ctx context.Context) (extent, error) {
	fence := bus.NewID()
	err := p.append(ctx, "poison list", 1, func(_ int, x *amqplink.Parcel) error {
		*x = p.record(poisonFence, fence, nil)
		return nil
	})
	if err != nil {
		return extent{}, err
	}
	there := extent{entries: map[string]int64{}, first: noOffset}
	err = p.read(ctx, noOffset, func(offset int64, d *amqp.Delivery) (more bool, err error) {
		switch text(d.Headers[poisonHeader]) {
		case poisonFence:
			there.end = offset
			return text(d.Headers[entryHeader]) != fence, nil
		case poisonRemove:
			var ids [][]byte
			if json.Unmarshal(d.Body, &ids) == nil {
				for _, id := range ids {
					delete(there.entries, string(id))
				}
				return true, nil
			}
		}
		there.entries[entryID(d, offset)] = offset
		return true, nil
	})
	for _, offset := range there.entries {
		if there.first == noOffset || offset < there.first {
			there.first = offset
		}
	}
	return there, err
}

// read visits the records from an offset on, until visit returns false or an error.
func (p *poisonStore) read(ctx context.Context, from int64, visit func(offset int64, d *amqp.Delivery) (more bool, err error)) error {
	s, err := p.d.consume.Get(ctx)
	if err != nil {
		return err
	}
	opening := amqplink.Start(func() (*streamReader, error) { return newStreamReader(ctx, s, p.stream, from) })
	r, err := opening.Wait(ctx)
	defer func() {
		go func() { // closing is a request that knows no context either
			if r, err := opening.Result(); err == nil {
				_ = r.ch.Close() // it has only read
			}
		}()
	}()
	if err != nil {
		return err
	}
	for {
		select {
		case d, ok := <-r.deliveries:
			if !ok {
				return errors.New("the broker ended the reading of the stream")
			}
			if err := d.Ack(false); err != nil { // makes room for more; a stream forgets nothing
				return err
			}
			offset, _ := d.Headers[offsetHeader].(int64)
			if more, err := visit(offset, &d); !more || err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// streamReader reads a stream.
type streamReader struct {
	ch         *amqp.Channel
	deliveries <-chan amqp.Delivery
}

func newStreamReader(ctx context.Context, s *amqplink.Session, stream string, from int64) (*streamReader, error) {
	var offset any = from
	if from == noOffset {
		offset = "first"
	}
	for n := 0; ; n++ {
		r, err := consumeStream(s, stream, offset)
		// A stream takes records a moment before it can be read: "stream not found" (seen on
		// 3.10.8, just declared).
		if !amqplink.HasCode(err, amqp.ResourceError) || n == 10 || !backoff.Sleep(ctx, backoff.Pause(min(n, 2)+1)) {
			return r, err
		}
	}
}

func consumeStream(s *amqplink.Session, stream string, offset any) (*streamReader, error) {
	ch, err := s.Conn.Channel()
	if err != nil {
		return nil, err
	}
	if err = ch.Qos(64, 0, false); err == nil {
		var deliveries <-chan amqp.Delivery
		deliveries, err = ch.Consume(stream, "", false, false, false, false, amqp.Table{offsetHeader: offset})
		if err == nil {
			return &streamReader{ch, deliveries}, nil
		}
	}
	_ = ch.Close() // err says why nothing is read
	return nil, err
}
