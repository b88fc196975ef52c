package postgres

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

var eventMigration = []string{
	`CREATE TABLE {store} (
	topic int PRIMARY KEY -- is an event store; events and groups know it by the negative number
)`,
	// seq is from the sequence of the log, whose last value readers look at.
	`CREATE TABLE {event} (
	topic        int      NOT NULL,
	shard        smallint NOT NULL,
	seq          bigint   NOT NULL,
	created      bigint   NOT NULL, -- microseconds since 1970
	time         bigint   NOT NULL, -- nanoseconds since 1970
	id           text     NOT NULL,
	msg_key      bytea    NOT NULL, -- the stream
	version      bigint   NOT NULL, -- in the stream, dense from 1
	type         text     NOT NULL,
	source       text     NOT NULL,
	subject      text     NOT NULL,
	content_type text     NOT NULL,
	headers      text,              -- as in the log
	payload      bytea,             -- NULL: a tombstone
	PRIMARY KEY (topic, shard, seq)
)`,
	`CREATE UNIQUE INDEX event_stream ON {event} (topic, msg_key, version)`,
	`CREATE TABLE {snapshot} (
	topic        int    NOT NULL,
	msg_key      bytea  NOT NULL,
	number       bigint NOT NULL, -- of the schema
	version      bigint NOT NULL, -- of the last event in it, and that event's id
	event        text   NOT NULL,
	content_type text   NOT NULL,
	payload      bytea  NOT NULL,
	PRIMARY KEY (topic, msg_key)
)`,
}

// logOf is the name of the table with a topic's messages.
func logOf(topic int64) string {
	if topic < 0 {
		return "event"
	}
	return "log"
}

// appendText appends to many streams: those of one group, or none of the group. The lock comes
// before the first number is drawn, because all rows come from it. Streams are in one order, so
// that two statements cannot wait for each other. Versions are compared in the statement's
// snapshot; the index refuses to collide with events that are committed after that.
//
// A transaction of the caller that stands still after it, without a limit of its own, is ended by
// the server after a minute: until then it holds up readers of the store.
//
// $1 class of the lock, $2 topic, $3 to $6 the streams (group, name, shard, expected version), $7
// to $16 the events (stream and number in it from 1, then columns), $17 how long to wait for locks
// ("": unchanged).
const appendText = `WITH begun AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared($1::int4, $2::int4), {now} AS created,
set_config('lock_timeout', COALESCE(NULLIF($17::text, ''), current_setting('lock_timeout')), TRUE),
set_config('idle_in_transaction_session_timeout', COALESCE(NULLIF(current_setting('idle_in_transaction_session_timeout'), '0'), '1min'), TRUE)),
a AS MATERIALIZED (SELECT w.i, w.grp, w.stream, w.shard, w.expected, COALESCE(h.version, 0) AS head, COALESCE(h.type, '') = '{closed}' AS closed, begun.created
FROM begun, unnest($3::int4[], $4::bytea[], $5::int2[], $6::int8[]) WITH ORDINALITY w (grp, stream, shard, expected, i)
LEFT JOIN LATERAL (SELECT e.version, e.type FROM {event} e WHERE e.topic = $2::int4 AND e.msg_key = w.stream ORDER BY e.version DESC LIMIT 1) h ON TRUE),
fit AS MATERIALIZED (SELECT a.*, bool_and(NOT a.closed AND (a.expected = -1 OR a.expected = a.head OR a.expected = -2 AND a.head > 0)) OVER (PARTITION BY a.grp) AS fits FROM a),
ins AS (INSERT INTO {event} (topic, shard, seq, created, time, id, msg_key, version, type, source, subject, content_type, headers, payload)
SELECT $2::int4, m.shard, nextval('{log_seq}'), m.created, m.time, m.id, m.stream, m.head + m.n, m.type, m.source, m.subject, m.content_type, m.headers, m.payload
FROM (SELECT fit.shard, fit.created, fit.stream, fit.head, r.* FROM (SELECT unnest($7::int4[]) AS i, unnest($8::int4[]) AS n, unnest($9::int8[]) AS time, unnest($10::text[]) AS id,
unnest($11::text[]) AS type, unnest($12::text[]) AS source, unnest($13::text[]) AS subject, unnest($14::text[]) AS content_type, unnest($15::text[]) AS headers,
unnest($16::bytea[]) AS payload) r JOIN fit ON fit.i = r.i AND fit.fits ORDER BY fit.stream, r.n) m RETURNING msg_key, seq)
SELECT fit.head, fit.closed, fit.fits, COALESCE(p.last, 0) FROM fit LEFT JOIN (SELECT msg_key, MAX(seq) AS last FROM ins GROUP BY msg_key) p ON p.msg_key = fit.stream`

func appendEvents(d *sqllog.Dialect) string {
	return d.SQL(strings.ReplaceAll(appendText, "{closed}", eventstore.TypeClosed))
}

// ReadDB implements sqllog.EventStore.
func (s *store) ReadDB() *sql.DB { return s.db }

// eventArrays are the parameters of appends.
type eventArrays struct {
	groups                                  []int32
	streams                                 [][]byte
	shards                                  []int16
	expected                                []int64
	of, numbers                             []int32
	times                                   []int64
	ids, types, sources, subjects, contents []string
	headers                                 []*string
	payloads                                [][]byte
}

func (a *eventArrays) add(group int, w *sqllog.StreamWrite) {
	a.groups = append(a.groups, int32(group))
	a.streams = append(a.streams, []byte(w.Stream))
	a.shards = append(a.shards, int16(w.Shard))
	a.expected = append(a.expected, w.Expected)
	for n, m := range w.Events {
		a.of, a.numbers = append(a.of, int32(len(a.streams))), append(a.numbers, int32(n+1))
		a.times, a.ids, a.types = append(a.times, sqlmessage.Nanos(m.Time)), append(a.ids, m.ID), append(a.types, m.Type)
		a.sources, a.subjects, a.contents = append(a.sources, m.Source), append(a.subjects, m.Subject), append(a.contents, m.ContentType)
		var headers *string
		if text, ok := sqlmessage.EncodeHeaders(m); ok {
			headers = &text
		}
		a.headers, a.payloads = append(a.headers, headers), append(a.payloads, m.Payload)
	}
}

// AppendEvents implements sqllog.EventStore, in one statement.
func (s *store) AppendEvents(ctx context.Context, topic int64, appends []*sqllog.Append, wait time.Duration) error {
	err := s.appendBatch(ctx, topic, appends, wait)
	if s.lacksPrepared(err) { // nothing was written
		err = s.appendBatch(ctx, topic, appends, wait)
	}
	return err
}

func (s *store) appendBatch(ctx context.Context, topic int64, appends []*sqllog.Append, wait time.Duration) error {
	var a eventArrays
	for g, one := range appends {
		for i := range one.Writes {
			a.add(g, &one.Writes[i])
		}
	}
	args := []any{
		s.class, int32(topic), a.groups, a.streams, a.shards, a.expected, a.of, a.numbers, a.times, a.ids, a.types, a.sources, a.subjects, a.contents, a.headers, a.payloads,
		strconv.FormatInt(wait.Milliseconds(), 10),
	}
	if !s.prepare.Load() {
		args = append([]any{pgx.QueryExecModeExec}, args...)
	}
	rows, err := s.pool.Query(ctx, s.appendEvents+" ORDER BY fit.i", args...)
	if err != nil {
		return finishEvents(err)
	}
	defer rows.Close()
	for _, one := range appends {
		for i := range one.Writes {
			if !rows.Next() {
				return finishEvents(rows.Err())
			}
			if err := rows.Scan(&one.Writes[i].Head, &one.Writes[i].Closed, &one.Done, &one.Writes[i].Last); err != nil {
				return &sqllog.Uncertain{Err: err}
			}
		}
	}
	rows.Close()
	return finishEvents(rows.Err())
}

// finishEvents judges the error of a statement that appends. An error that the server reports has
// undone it.
func finishEvents(err error) error {
	if err == nil || pgconn.SafeToRetry(err) {
		return err
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok || e.SeverityUnlocalized != "ERROR":
		return &sqllog.Uncertain{Err: err}
	case isRace(err):
		return sqllog.ErrRaced
	case e.Code == "55P03":
		return sqllog.ErrHeld
	}
	return err
}

// isRace says whether err is that somebody else has appended to a stream since the statement began.
func isRace(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == "23505" && e.ConstraintName == "event_stream"
}

// AppendEventsIn implements sqllog.EventStore: the same statement, whose number of rows says
// whether the stream was as expected.
func (s *store) AppendEventsIn(ctx context.Context, x driver.Execer, topic int64, w *sqllog.StreamWrite) (bool, error) {
	var of, numbers textArray
	var a messageArrays
	for n, m := range w.Events {
		of.number(1)
		numbers.number(int64(n + 1))
		a.add(m)
	}
	one := func(n int64) string { return "{" + strconv.FormatInt(n, 10) + "}" }
	var stream textArray
	stream.bytes([]byte(w.Stream))
	r, err := x.ExecContext(ctx, s.appendEvents+" WHERE fit.fits", s.class, topic, one(0), stream.String(), one(int64(w.Shard)), one(w.Expected),
		of.String(), numbers.String(), a.times.String(), a.ids.String(), a.types.String(), a.sources.String(), a.subjects.String(), a.contents.String(), a.headers.String(), a.payloads.String(), "")
	if isRace(err) {
		return false, sqllog.ErrRaced
	}
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}
