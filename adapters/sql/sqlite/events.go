package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// An event store is a table of its own, like a topic's log, with the version of each event in its
// stream.
const eventColumns = `(
	seq          INTEGER PRIMARY KEY,
	shard        INTEGER NOT NULL,
	created      INTEGER NOT NULL, -- microseconds since 1970
	id           TEXT NOT NULL,
	msg_key      BLOB NOT NULL,    -- the stream
	version      INTEGER NOT NULL, -- in the stream, dense from 1
	type         TEXT NOT NULL,
	source       TEXT NOT NULL,
	subject      TEXT NOT NULL,
	time         INTEGER NOT NULL, -- nanoseconds since 1970
	content_type TEXT NOT NULL,
	headers      TEXT,             -- as in a log
	payload      BLOB              -- NULL: a tombstone
)`

func createEvents(ctx context.Context, tx *sql.Tx, table string) error {
	if _, err := tx.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS "+table+" "+eventColumns); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "CREATE UNIQUE INDEX IF NOT EXISTS "+table+"_stream ON "+table+" (msg_key, version)")
	return err
}

var eventMigration = []string{
	`CREATE TABLE {store} (
	topic INTEGER PRIMARY KEY -- is an event store; groups know it by the negative number
)`,
	`CREATE TABLE {snapshot} (
	topic        INTEGER NOT NULL,
	msg_key      BLOB NOT NULL,
	number       INTEGER NOT NULL, -- of the schema
	version      INTEGER NOT NULL, -- of the last event in it, and that event's id
	event        TEXT NOT NULL,
	content_type TEXT NOT NULL,
	payload      BLOB NOT NULL,
	PRIMARY KEY (topic, msg_key)
) WITHOUT ROWID`,
}

// insertEvent are the columns of eventRow.
const insertEvent = " (shard, created, time, id, msg_key, version, " + sqlmessage.Columns + ") "

func (t *statements) initEvents(s *store, topic int64, table string) {
	t.isStore = topic < 0
	t.lastEvent = prepared{db: s.write, text: "SELECT version, type FROM " + table + " WHERE msg_key = ? ORDER BY version DESC LIMIT 1"}
	t.event = prepared{db: s.write, text: "INSERT INTO " + table + insertEvent + "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"}
}

// ReadDB implements sqllog.EventStore.
func (s *store) ReadDB() *sql.DB { return s.read }

// AppendEvents implements sqllog.EventStore. There is one writer at a time, so what it reads stays
// true until it commits. It does without the context, as Append.
func (s *store) AppendEvents(_ context.Context, topic int64, appends []*sqllog.Append, _ time.Duration) error {
	ctx := context.Background()
	t := s.topic(topic)
	last, err := t.lastEvent.get()
	if err != nil {
		return err
	}
	insert, err := t.event.get()
	if err != nil {
		return err
	}
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, s.dialect.SQL(writeLock)); err != nil { // a pool of the caller may begin without it
		return err
	}
	last, insert = tx.StmtContext(ctx, last), tx.StmtContext(ctx, insert)
	created := time.Now().UnixMicro() // inside the transaction, so that it grows with the position
	for _, a := range appends {
		for i := range a.Writes {
			w := &a.Writes[i]
			var kind string
			err := last.QueryRowContext(ctx, []byte(w.Stream)).Scan(&w.Head, &kind)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			w.Closed = kind == eventstore.TypeClosed
		}
		if a.Done = a.Fits(); !a.Done {
			continue
		}
		for i := range a.Writes {
			w := &a.Writes[i]
			for n := range w.Events {
				r, err := insert.ExecContext(ctx, eventRow(w, n, w.Head+int64(n)+1, created)...)
				if err != nil {
					return err
				}
				if w.Last, err = r.LastInsertId(); err != nil {
					return err
				}
			}
		}
	}
	return s.finish(tx.Commit())
}

func eventRow(w *sqllog.StreamWrite, n int, version, created int64) []any {
	m := w.Events[n]
	return sqlmessage.AppendArgs(append(make([]any, 0, 17), w.Shard, created, sqlmessage.Nanos(m.Time), m.ID, []byte(w.Stream), version), m)
}

// AppendEventsIn implements sqllog.EventStore: a statement for each event, of which the first says
// whether the stream is as expected.
func (s *store) AppendEventsIn(ctx context.Context, x driver.Execer, topic int64, w *sqllog.StreamWrite) (bool, error) {
	table, _ := s.dialect.Log(topic)
	insert := "INSERT INTO " + table + insertEvent + "SELECT ?, ?, ?, ?, ?, h.version + ?, ?, ?, ?, ?, ?, ? FROM (SELECT COALESCE(MAX(version), 0) AS version FROM " +
		table + " WHERE msg_key = ?) h WHERE (? < 0 OR h.version = ?) AND NOT EXISTS (SELECT 1 FROM " + table + " e WHERE e.msg_key = ? AND e.version = h.version AND e.type = ?)"
	created, expected, key := time.Now().UnixMicro(), w.Expected, []byte(w.Stream)
	for n := range w.Events {
		args := append(eventRow(w, n, 1, created), key, expected, expected, key, eventstore.TypeClosed)
		r, err := x.ExecContext(ctx, insert, args...)
		if err != nil {
			return false, err
		}
		if rows, err := r.RowsAffected(); err != nil || rows == 0 {
			return false, err
		}
		expected = -1 // it follows the one before
	}
	return true, nil
}
