package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
)

// EventStore is the part of a [Store] that compares the version of a stream and appends in one
// step.
type EventStore interface {
	// ReadDB reads streams. It must not wait for writers.
	ReadDB() *sql.DB
	// AppendEvents writes those of appends that can be written, in one transaction, and notes in
	// each its outcome. No stream occurs twice. An error is of all: ErrRaced, ErrHeld after
	// waiting for about so long, or as of Append.
	AppendEvents(ctx context.Context, topic int64, appends []*Append, wait time.Duration) error
	// AppendEventsIn appends to one stream within the transaction x. It returns false if the stream
	// is not as expected, or is closed.
	AppendEventsIn(ctx context.Context, x driver.Execer, topic int64, w *StreamWrite) (bool, error)
}

var (
	// ErrRaced is returned if another process has appended to one of the streams meanwhile. Nothing
	// was written; the same may succeed at once.
	ErrRaced = errors.New("another process has appended to the stream")
	// ErrHeld is returned if a transaction that is not over has appended to one of the streams.
	ErrHeld = errors.New("an open transaction has appended to the stream")
)

// Append is written as a whole or not at all.
type Append struct {
	Writes []StreamWrite
	// Done: it is committed. Set by the store, with the results of the writes.
	Done bool
}

// StreamWrite is the part of an append that goes to one stream.
type StreamWrite struct {
	Stream   string
	Shard    int32
	Expected int64 // a version, or as eventstore.Expected says
	Events   []*bus.Message

	// Head is the version that the stream had, and Closed whether it takes no more. Last is the
	// position of the last event.
	Head   int64
	Closed bool
	Last   int64
}

// Fits says whether the stream is as expected.
func (w *StreamWrite) Fits() bool { return !w.Closed && eventstore.At(w.Expected).Met(w.Head) }

// Fits says whether all streams are as expected.
func (a *Append) Fits() bool {
	return !slices.ContainsFunc(a.Writes, func(w StreamWrite) bool { return !w.Fits() })
}

func (t topic) isStore() bool { return t.id < 0 }

// OpenStore implements eventstore.Host. The tables of stores are made with the first one.
func (d *Driver) OpenStore(ctx context.Context, name string, shards int) (eventstore.Backend, error) {
	const op = "open the store"
	if !d.enter() {
		return nil, d.fail(op, name, bus.ErrClosed)
	}
	defer d.calls.Done()
	t, known := d.topics.cached(name)
	if !known {
		err := d.persist(ctx, func(ctx context.Context) (err error) {
			if t, err = d.topics.find(ctx, name); !errors.Is(err, errNoTopic) {
				return err
			}
			if _, _, err = upgrade(ctx, d.store, versionOfStores, !d.config.NoMigrate); err == nil {
				t, err = d.topics.createStore(ctx, name, shards)
			}
			return err
		})
		if err != nil {
			return nil, d.fail(op, name, err)
		}
		d.topics.byName.Store(name, t)
	}
	if !t.isStore() {
		return nil, d.fail(op, name, fmt.Errorf("%w: the topic exists and is no event store: open the store before anybody publishes or subscribes to its topic", bus.ErrInvalid))
	}
	return newEvents(d, t), nil
}

// createStore creates a topic that is a store, unless somebody else is quicker to create one of any
// kind.
func (t *topics) createStore(ctx context.Context, name string, shards int) (found topic, err error) {
	dialect := t.driver.dialect
	err = t.driver.transact(ctx, t.driver.store.DB(), func(tx *sql.Tx) error {
		n, err := affected(ctx, tx, dialect.SQL("{insert} {topic} (name, shards) VALUES (?, ?) {ifnew}"), name, shards)
		if err != nil {
			return err
		}
		if n > 0 {
			if _, err = tx.ExecContext(ctx, dialect.SQL("INSERT INTO {store} (topic) SELECT id FROM {topic} WHERE name = ?"), name); err != nil {
				return err
			}
		}
		if found, err = t.row(ctx, tx, name); err != nil || dialect.CreateTopic == nil {
			return err
		}
		return dialect.CreateTopic(ctx, tx, found.id)
	})
	return found, err
}

// events implements eventstore.Backend.
type events struct {
	driver *Driver
	topic  topic

	read, back, ids, streams, floor, first, last, remove string
}

func newEvents(d *Driver, t topic) *events {
	of := func(template string) string { return d.dialect.LogSQL(t.id, template) }
	const columns = "SELECT version, seq, time, id, type, source, subject, content_type, headers, payload FROM {log} WHERE {of} AND msg_key = ? AND "
	return &events{
		driver: d, topic: t,
		read: of(columns + "version >= ? ORDER BY version LIMIT ?"),
		back: of(columns + "version < ? ORDER BY version DESC LIMIT ?"),
		ids:  of("SELECT id, seq FROM {log} WHERE {of} AND msg_key = ? AND version > ? ORDER BY version LIMIT ?"),
		streams: of("SELECT g.msg_key, g.lo, g.hi, e.type, e.created FROM (SELECT msg_key, MIN(version) AS lo, MAX(version) AS hi FROM {log} WHERE {of} AND msg_key > ? AND msg_key >= ?" +
			" AND msg_key < ? GROUP BY msg_key ORDER BY msg_key LIMIT ?) g JOIN {log} e ON {of} AND e.msg_key = g.msg_key AND e.version = g.hi ORDER BY g.msg_key"),
		floor:  d.dialect.SQL("SELECT MIN(l.pos) FROM {lane} l JOIN {grp} g ON g.id = l.grp WHERE g.topic = ? AND l.shard = ?"),
		first:  of("SELECT MIN(version) FROM {log} WHERE {of} AND msg_key = ?"),
		last:   of("SELECT MAX(version) FROM {log} WHERE {of} AND msg_key = ?"),
		remove: of("DELETE FROM {log} WHERE {of} AND msg_key = ? AND version < ? AND seq < ?"),
	}
}

// call runs do, which can be repeated without harm, while that may help, and names the operation in
// its error.
func (e *events) call(ctx context.Context, op string, do func(ctx context.Context) error) error {
	if !e.driver.enter() {
		return e.driver.fail(op, e.topic.name, bus.ErrClosed)
	}
	defer e.driver.calls.Done()
	if err := e.driver.persist(ctx, do); err != nil {
		return e.driver.fail(op, e.topic.name, err)
	}
	return nil
}

// Read implements eventstore.Backend.
func (e *events) Read(ctx context.Context, stream string, from int64, limit int) (found []eventstore.Recorded, err error) {
	err = e.call(ctx, "read", func(ctx context.Context) (err error) {
		found, err = e.rows(ctx, stream, e.read, from, limit)
		return err
	})
	return found, err
}

// Back implements eventstore.Backend.
func (e *events) Back(ctx context.Context, stream string, before int64, limit int) (found []eventstore.Recorded, err error) {
	if before == 0 {
		before = 1<<63 - 1
	}
	err = e.call(ctx, "read", func(ctx context.Context) (err error) {
		found, err = e.rows(ctx, stream, e.back, before, limit)
		return err
	})
	return found, err
}

// rows reads events of one stream.
func (e *events) rows(ctx context.Context, stream, query string, version int64, limit int) (found []eventstore.Recorded, err error) {
	var decoder Decoder
	var c Columns
	var texts [len(c.Texts)]sql.RawBytes
	var payload any // a []byte could not tell an empty one from none
	key := []byte(stream)
	err = collect(ctx, e.driver.store.ReadDB(), func(rows *sql.Rows) error {
		var version, seq int64
		err := rows.Scan(&version, &seq, &c.Nanos, &texts[0], &texts[2], &texts[3], &texts[4], &texts[5], &texts[6], &payload)
		if err != nil {
			return err
		}
		for i := range texts {
			c.Texts[i] = texts[i]
		}
		c.Texts[1] = key
		m := decoder.Message(&c)
		if p, ok := payload.([]byte); ok {
			if m.Payload = p; p == nil {
				m.Payload = []byte{}
			}
		}
		found = append(found, eventstore.Recorded{Message: m, Stream: m.Key, Version: version, Position: eventstore.Position(seq)})
		return nil
	}, query, key, version, limit)
	return found, err
}

// Head implements eventstore.Backend.
func (e *events) Head(ctx context.Context) (head eventstore.Position, err error) {
	err = e.call(ctx, "head", func(ctx context.Context) error {
		h, err := e.driver.store.Head(ctx, e.topic.id)
		head = eventstore.Position(h)
		return err
	})
	return head, err
}

// Last implements eventstore.Backend.
func (e *events) Last(ctx context.Context) (last eventstore.Position, err error) {
	err = e.call(ctx, "head", func(ctx context.Context) error {
		l, err := e.driver.store.Last(ctx, e.driver.store.ReadDB(), e.topic.id)
		last = eventstore.Position(l)
		return err
	})
	return last, err
}

// Before implements eventstore.Backend.
func (e *events) Before(ctx context.Context, t time.Time) (before eventstore.Position, err error) {
	err = e.call(ctx, "look for a time", func(ctx context.Context) error {
		head, err := e.driver.store.Head(ctx, e.topic.id)
		if err != nil {
			return err
		}
		before = eventstore.Position(head)
		for shard := range e.topic.shards {
			since, err := e.driver.since(ctx, e.topic, shard, t, head)
			if err != nil {
				return err
			}
			before = min(before, eventstore.Position(since-1))
		}
		return nil
	})
	return before, err
}

// Streams implements eventstore.Backend.
func (e *events) Streams(ctx context.Context, prefix, after string, limit int) (infos []eventstore.StreamInfo, err error) {
	err = e.call(ctx, "list streams", func(ctx context.Context) error {
		infos = nil // of a try that was cut short
		return collect(ctx, e.driver.store.ReadDB(), func(rows *sql.Rows) error {
			var name sql.RawBytes
			var kind string
			var created int64
			var i eventstore.StreamInfo
			if err := rows.Scan(&name, &i.First, &i.Last, &kind, &created); err != nil {
				return err
			}
			i.Name, i.Closed, i.Changed = string(name), kind == eventstore.TypeClosed, time.UnixMicro(created).UTC()
			infos = append(infos, i)
			return nil
		}, e.streams, []byte(after), []byte(prefix), beyond(prefix), limit)
	})
	return infos, err
}

// beyond returns a key that is greater than all keys that begin with the prefix.
func beyond(prefix string) []byte {
	end := []byte(prefix)
	for len(end) > 0 && end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	if len(end) == 0 { // a key has 255 bytes at most
		return slices.Repeat([]byte{0xff}, 256)
	}
	end[len(end)-1]++
	return end
}

// Truncate implements eventstore.Backend. Events that a group has not finished stay: it would pass
// over it, and its members would take the database for an older state of itself.
func (e *events) Truncate(ctx context.Context, stream string, before int64) (first int64, err error) {
	err = e.call(ctx, "truncate", func(ctx context.Context) error {
		db, key := e.driver.store.DB(), []byte(stream)
		var last, floor sql.NullInt64
		if err := db.QueryRowContext(ctx, e.last, key).Scan(&last); err != nil || !last.Valid {
			return err
		}
		if err := db.QueryRowContext(ctx, e.floor, e.topic.id, Shard(stream, e.topic.shards)).Scan(&floor); err != nil {
			return err
		}
		if !floor.Valid { // there is no group
			floor.Int64 = 1<<63 - 1
		}
		if _, err := db.ExecContext(ctx, e.remove, key, min(before, last.Int64), floor.Int64); err != nil {
			return err
		}
		return db.QueryRowContext(ctx, e.first, key).Scan(&first)
	})
	if err == nil && first == 0 {
		err = e.driver.fail("truncate", e.topic.name, fmt.Errorf("stream %q has no events: %w", stream, bus.ErrNotFound))
	}
	return first, err
}

// Snapshot implements eventstore.Backend.
func (e *events) Snapshot(ctx context.Context, stream string) (s eventstore.Snapshot, err error) {
	err = e.call(ctx, "read the snapshot", func(ctx context.Context) error {
		err := e.driver.store.ReadDB().QueryRowContext(ctx, e.driver.dialect.SQL("SELECT number, version, event, content_type, payload FROM {snapshot} WHERE topic = ? AND msg_key = ?"),
			e.topic.id, []byte(stream)).Scan(&s.Schema, &s.Version, &s.EventID, &s.ContentType, &s.State)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	return s, err
}

// SaveSnapshot implements eventstore.Backend.
func (e *events) SaveSnapshot(ctx context.Context, stream string, s eventstore.Snapshot) error {
	return e.call(ctx, "save the snapshot", func(ctx context.Context) error {
		set := []any{s.Schema, s.Version, s.EventID, s.ContentType, s.State, e.topic.id, []byte(stream)}
		n, err := affected(ctx, e.driver.store.DB(), e.driver.dialect.SQL("UPDATE {snapshot} SET number = ?, version = ?, event = ?, content_type = ?, payload = ? WHERE topic = ? AND msg_key = ?"+
			" AND (number <> ? OR version <= ?)"), append(set, s.Schema, s.Version)...)
		if err != nil || n > 0 {
			return err
		}
		_, err = e.driver.store.DB().ExecContext(ctx, e.driver.dialect.SQL("{insert} {snapshot} (number, version, event, content_type, payload, topic, msg_key) VALUES (?, ?, ?, ?, ?, ?, ?) {ifnew}"), set...)
		return err
	})
}

// markEvent adds the version and the position to an event that a group is to receive.
func markEvent(r *Record) {
	r.Message.Headers = append(r.Message.Headers,
		bus.Header{Name: eventstore.HeaderVersion, Value: strconv.FormatInt(r.Version, 10)},
		bus.Header{Name: eventstore.HeaderPosition, Value: strconv.FormatInt(r.Seq, 10)})
}

var _ eventstore.Host = (*Driver)(nil)
