package mysql

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

var eventMigration = []string{
	// Events and groups know a store by the negative number of its topic.
	`CREATE TABLE IF NOT EXISTS {store} (
	topic INT NOT NULL PRIMARY KEY
)` + options,
	// msg_key: the stream; version: in the stream, dense from 1. The rest is as in the log.
	`CREATE TABLE IF NOT EXISTS {event} (
	topic        INT            NOT NULL,
	shard        SMALLINT       NOT NULL,
	seq          BIGINT         NOT NULL AUTO_INCREMENT,
	created      BIGINT         NOT NULL,
	time         BIGINT         NOT NULL,
	id           VARCHAR(255)   NOT NULL,
	msg_key      VARBINARY(255) NOT NULL,
	version      BIGINT         NOT NULL,
	type         VARCHAR(255)   NOT NULL,
	source       VARCHAR(255)   NOT NULL,
	subject      VARCHAR(255)   NOT NULL,
	content_type VARCHAR(255)   NOT NULL,
	headers      LONGTEXT       NULL,
	payload      LONGBLOB       NULL,
	PRIMARY KEY (topic, shard, seq),
	UNIQUE stream (topic, msg_key, version),
	INDEX (seq)
)` + options,
	// number: of the schema; version: of the last event in the state; event: that event's id.
	`CREATE TABLE IF NOT EXISTS {snapshot} (
	topic        INT            NOT NULL,
	msg_key      VARBINARY(255) NOT NULL,
	number       BIGINT         NOT NULL,
	version      BIGINT         NOT NULL,
	event        VARCHAR(255)   NOT NULL,
	content_type VARCHAR(255)   NOT NULL,
	payload      LONGBLOB       NOT NULL,
	PRIMARY KEY (topic, msg_key)
)` + options,
}

// logOf is the name of the table with a topic's messages.
func logOf(topic int64) string {
	if topic < 0 {
		return "event"
	}
	return "log"
}

// errDuplicate is the server's error of a value that a unique index has already.
const errDuplicate = 1062

// ReadDB implements sqllog.EventStore.
func (s *store) ReadDB() *sql.DB { return s.db }

const (
	eventCols  = "INSERT INTO {event} (topic, shard, created, time, id, msg_key, version, " + sqlmessage.Columns + ") "
	eventRow   = "?, ?, {now}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"
	eventFrom  = "?, ?, {now}, ?, ?, ?, h.version + ?, ?, ?, ?, ?, ?, ?" // h has the stream's version
	eventRows  = 256                                                     // in one statement
	streamHead = "(SELECT msg_key, version, type FROM {event} WHERE topic = ? AND msg_key = ? ORDER BY version DESC LIMIT 1)"
)

// AppendEvents implements sqllog.EventStore. The topic's row is locked first, as publishing does:
// so what is read after that stays true until the commit, and events become visible in the order of
// their numbers.
func (s *store) AppendEvents(ctx context.Context, topic int64, appends []*sqllog.Append, _ time.Duration) error {
	tx, err := s.db.BeginTx(ctx, nil) // whatever its isolation: what is read after the lock is new
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var id, step int64 // numbers of one statement follow each other by the step
	if err := tx.QueryRowContext(ctx, s.dialect.SQL("SELECT id, @@auto_increment_increment FROM {topic} WHERE id = ? FOR UPDATE"), -topic).Scan(&id, &step); err != nil {
		return err
	}
	if err := s.heads(ctx, tx, topic, appends); err != nil {
		return err
	}
	var writes []*sqllog.StreamWrite
	var versions []int64
	var events []*bus.Message
	for _, a := range appends {
		if a.Done = a.Fits(); !a.Done {
			continue
		}
		for i := range a.Writes {
			w := &a.Writes[i]
			for n, m := range w.Events {
				writes, versions, events = append(writes, w), append(versions, w.Head+int64(n)+1), append(events, m)
			}
		}
	}
	insert, row := s.dialect.SQL(eventCols+"VALUES ("+eventRow+")"), s.dialect.SQL(", ("+eventRow+")")
	for len(events) > 0 {
		n := min(len(events), eventRows)
		args := make([]any, 0, n*12)
		for i := range n {
			args = appendEvent(args, topic, writes[i], versions[i], events[i])
		}
		r, err := tx.ExecContext(ctx, insert+strings.Repeat(row, n-1), args...)
		if err != nil {
			return raced(err)
		}
		first, err := r.LastInsertId()
		if err != nil {
			return err
		}
		for i := range n {
			writes[i].Last = first + int64(i)*step
		}
		writes, versions, events = writes[n:], versions[n:], events[n:]
	}
	return finish(tx.Commit())
}

// heads reads the last version of each stream.
func (s *store) heads(ctx context.Context, tx *sql.Tx, topic int64, appends []*sqllog.Append) error {
	byStream := map[string]*sqllog.StreamWrite{}
	var args []any
	for _, a := range appends {
		for i := range a.Writes {
			w := &a.Writes[i]
			w.Head, w.Closed = 0, false
			byStream[w.Stream] = w
			args = append(args, topic, []byte(w.Stream))
		}
	}
	one := s.dialect.SQL(streamHead)
	rows, err := tx.QueryContext(ctx, one+strings.Repeat(" UNION ALL "+one, len(byStream)-1), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var stream, kind sql.RawBytes
		var version int64
		if err := rows.Scan(&stream, &version, &kind); err != nil {
			return err
		}
		w := byStream[string(stream)]
		w.Head, w.Closed = version, string(kind) == eventstore.TypeClosed
	}
	return rows.Err()
}

func appendEvent(args []any, topic int64, w *sqllog.StreamWrite, version int64, m *bus.Message) []any {
	return sqlmessage.AppendArgs(append(args, topic, w.Shard, sqlmessage.Nanos(m.Time), m.ID, []byte(w.Stream), version), m)
}

// raced tells that the index has refused an event.
func raced(err error) error {
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok && e.Number == errDuplicate {
		return sqllog.ErrRaced
	}
	return err
}

// AppendEventsIn implements sqllog.EventStore: a statement for each event, of which the first says
// whether the stream is as expected.
func (s *store) AppendEventsIn(ctx context.Context, x driver.Execer, topic int64, w *sqllog.StreamWrite) (bool, error) {
	if _, err := x.ExecContext(ctx, s.dialect.SQL("SELECT id FROM {topic} WHERE id = ? FOR UPDATE"), -topic); err != nil {
		return false, err
	}
	insert := s.dialect.SQL(eventCols + "SELECT " + eventFrom + " FROM (SELECT COALESCE(MAX(version), 0) AS version FROM {event} WHERE topic = ? AND msg_key = ?) h" +
		" WHERE (? < 0 OR h.version = ?) AND NOT EXISTS (SELECT 1 FROM {event} e WHERE e.topic = ? AND e.msg_key = ? AND e.version = h.version AND e.type = ?)")
	expected, key := w.Expected, []byte(w.Stream)
	for _, m := range w.Events {
		args := append(appendEvent(nil, topic, w, 1, m), topic, key, expected, expected, topic, key, eventstore.TypeClosed)
		r, err := x.ExecContext(ctx, insert, args...)
		if err != nil {
			return false, raced(err)
		}
		if rows, err := r.RowsAffected(); err != nil || rows == 0 {
			return false, err
		}
		expected = -1 // it follows the one before
	}
	return true, nil
}
