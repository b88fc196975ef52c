package postgres

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
)

// store implements sqllog.Store.
type store struct {
	pool    *pgxpool.Pool
	owned   bool
	db      *sql.DB // over the pool, for rare statements
	keeper  *sql.DB // with connections of its own
	dialect *sqllog.Dialect
	class   int32 // of the advisory locks
	channel string
	// prepare: statements may be prepared under a name, as the pool's own are.
	prepare atomic.Bool
	lost    atomic.Bool // prepared statements have gone
	opened  atomic.Bool

	insert, head, holders statement
	notify                string
	log, event            tables // of topics and of event stores
	appendEvents          string
}

// tables are the statements on a topic's messages.
type tables struct {
	witness, read                statement
	commit, settle, settlePlaced string
}

// statement is sent in the protocol's own form, without the library's conversions. A statement
// without a name is never prepared.
type statement struct {
	name, text string
	params     []uint32 // types
}

// Types of parameters.
const (
	oidInt2       = 21
	oidInt4       = 23
	oidInt8       = 20
	oidText       = 25
	oidBytea      = 17
	oidInt2Array  = 1005
	oidInt4Array  = 1007
	oidInt8Array  = 1016
	oidTextArray  = 1009
	oidByteaArray = 1001
)

func newStore(pool *pgxpool.Pool, owned bool, schema string) *store {
	d := dialect(schema)
	s := &store{
		pool: pool, owned: owned, keeper: keeperDB(pool.Config()), dialect: d,
		class: lockClass(schema), channel: "millrace_" + schema,
		insert: statement{
			name: "millrace_insert_" + schema,
			// The locks come before the first number is drawn: the count needs them all, and the
			// numbers are drawn for rows that begin with the count. Arrays are unnested in the
			// select list, because a table of many columns would be collected first.
			text: d.SQL(`WITH locks AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared($1, topic) FROM unnest($2::int4[]) topic)
INSERT INTO {log} (topic, shard, seq, created, time, id, msg_key, type, source, subject, content_type, headers, payload)
SELECT m.topic, m.shard, nextval('{log_seq}'), m.created, m.time, m.id, m.msg_key, m.type, m.source, m.subject, m.content_type, m.headers, m.payload
FROM (SELECT begun.created, unnest($3::int4[]) AS topic, unnest($4::int2[]) AS shard, unnest($5::int8[]) AS time, unnest($6::text[]) AS id,
unnest($7::bytea[]) AS msg_key, unnest($8::text[]) AS type, unnest($9::text[]) AS source, unnest($10::text[]) AS subject,
unnest($11::text[]) AS content_type, unnest($12::text[]) AS headers, unnest($13::bytea[]) AS payload
FROM (SELECT COUNT(*), {now} AS created FROM locks) begun) m`),
			params: []uint32{oidInt4, oidInt4Array, oidInt4Array, oidInt2Array, oidInt8Array, oidTextArray, oidByteaArray, oidTextArray, oidTextArray, oidTextArray, oidTextArray, oidTextArray, oidByteaArray},
		},
		head: statement{
			name: "millrace_head_" + schema,
			text: d.SQL("SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8 FROM {log_seq}"),
		},
		holders: statement{
			name: "millrace_holders",
			text: `SELECT virtualtransaction FROM pg_locks WHERE locktype = 'advisory' AND classid = ($1::int8 & 4294967295)::oid AND objid = ($2::int8 & 4294967295)::oid AND objsubid = 2
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
			params: []uint32{oidInt8, oidInt8},
		},
		log: onTable(d, "{log}", ""), event: onTable(d, "{event}", ", l.version"),
		notify: "SELECT pg_notify($1, t) FROM unnest($2::text[]) t",
	}
	s.appendEvents = appendEvents(d)
	s.db = s.openDB()
	s.prepare.Store(pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement)
	return s
}

// onTable makes the statements on the messages in a table, which may have one more column.
func onTable(d *sqllog.Dialect, table, column string) tables {
	of := func(text string) string {
		return d.SQL(strings.NewReplacer("{of}", table, "{column}", column).Replace(text))
	}
	return tables{
		witness: statement{
			text:   of("SELECT 1 FROM {of} WHERE topic = $1 AND shard = $2 AND seq = $3 AND id = $4"),
			params: []uint32{oidInt4, oidInt2, oidInt8, oidText},
		},
		read: statement{
			// Planned each time, a tenth of a millisecond: a plan that was made when the table was
			// tiny scans all of it.
			text: of(`SELECT l.shard, l.seq, l.time, l.id, l.msg_key, l.type, l.source, l.subject, l.content_type, l.headers, l.payload{column}
FROM unnest($2::int2[], $3::int8[]) c (shard, pos), LATERAL (SELECT * FROM {of} l WHERE l.topic = $1 AND l.shard = c.shard AND l.seq >= c.pos ORDER BY l.seq LIMIT $4) l LIMIT $5`),
			params: []uint32{oidInt4, oidInt2Array, oidInt8Array, oidInt8, oidInt8},
		},
		// Scalar subqueries: of EXISTS, the planner may make a hash of the whole table.
		commit: of(`UPDATE {lane} l SET pos = c.pos, win = c.win
FROM unnest($4::int2[], $5::int8[], $6::int8[], $7::bytea[], $8::int8[], $9::int8[], $10::text[], $11::int8[]) c (shard, epoch, pos, win, stored, top, id, chg)
WHERE l.grp = $1 AND l.owner = $2 AND l.shard = c.shard AND l.epoch = c.epoch AND l.pos <= c.pos AND l.pos >= c.stored
AND (c.top = 0 OR (SELECT m.id FROM {of} m WHERE m.topic = $3 AND m.shard = c.shard AND m.seq = c.top) = c.id)
AND (c.chg = 0 OR (SELECT p.chg FROM {parked} p WHERE p.grp = $1 AND p.shard = c.shard AND p.pos = 0) >= c.chg)`),
		settle: of(settleText), settlePlaced: of(settlePlacedText),
	}
}

// of returns the statements on a topic's messages.
func (s *store) of(topic int64) *tables {
	if topic < 0 {
		return &s.event
	}
	return &s.log
}

func (s *store) Dialect() *sqllog.Dialect { return s.dialect }
func (s *store) DB() *sql.DB              { return s.db }
func (s *store) KeeperDB() *sql.DB        { return s.keeper }

// keeperConns is how many connections keep leases: a connection that hangs must not hold up the
// other.
const keeperConns = 2

// keeperDB makes a pool like another.
func keeperDB(c *pgxpool.Config) *sql.DB {
	var opts []stdlib.OptionOpenDB
	if c.BeforeConnect != nil { // it may bring a password that changes
		opts = append(opts, stdlib.OptionBeforeConnect(c.BeforeConnect))
	}
	if c.AfterConnect != nil {
		opts = append(opts, stdlib.OptionAfterConnect(c.AfterConnect))
	}
	db := stdlib.OpenDB(*c.ConnConfig, opts...)
	db.SetMaxOpenConns(keeperConns)
	db.SetMaxIdleConns(keeperConns)
	db.SetConnMaxLifetime(c.MaxConnLifetime)
	return db
}

func (s *store) As(target any) bool {
	if pool, ok := target.(**pgxpool.Pool); ok {
		*pool = s.pool
		return true
	}
	return false
}

func (s *store) Close() error {
	err := errors.Join(s.keeper.Close(), s.db.Close())
	if s.owned {
		s.pool.Close()
	}
	return err
}

// session is a connection on which statements are ready.
type session struct {
	*pgxpool.Conn
	prepared bool
}

// acquire takes a connection on which the statements are ready.
func (s *store) acquire(ctx context.Context, statements ...*statement) (*session, error) {
	pooled, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	conn := &session{pooled, s.prepare.Load()}
	if !conn.prepared {
		return conn, nil
	}
	for _, st := range statements { // those that have a name
		if _, err := conn.Conn.Conn().Prepare(ctx, st.name, st.text); err != nil { // nothing, if it is prepared already
			conn.Release()
			return nil, err
		}
	}
	return conn, nil
}

// lacksPrepared says whether err is that a prepared statement is not there, because a pooler or a
// hook has reset the session. From then on none is prepared, as nobody says when it happens again.
func (s *store) lacksPrepared(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || e.Code != "26000" {
		return false
	}
	s.prepare.Store(false)
	s.lost.Store(true)
	return true
}

// inBinary is the format of all parameters and results.
var inBinary = []int16{1}

// send sends a statement with a transaction of its own.
func (c *session) send(p *pgconn.Pipeline, st *statement, params ...[]byte) {
	if c.prepared && st.name != "" {
		p.SendQueryPrepared(st.name, params, inBinary, inBinary)
	} else {
		p.SendQueryParams(st.text, params, st.params, inBinary, inBinary)
	}
	p.SendPipelineSync()
}

// Append implements sqllog.Store: one statement, which is a transaction of its own.
func (s *store) Append(ctx context.Context, batch []sqllog.Record) error {
	err := s.insertBatch(ctx, batch)
	if s.lacksPrepared(err) {
		err = s.insertBatch(ctx, batch)
	}
	return err
}

func (s *store) insertBatch(ctx context.Context, batch []sqllog.Record) error {
	conn, err := s.acquire(ctx, &s.insert)
	if err != nil {
		return err
	}
	defer conn.Release()
	e := encoders.Get().(*encoder)
	defer encoders.Put(e)
	params := e.encode(s.class, batch)
	var result *pgconn.ResultReader
	if pg := conn.Conn.Conn().PgConn(); conn.prepared {
		result = pg.ExecPrepared(ctx, s.insert.name, params, inBinary, inBinary)
	} else {
		result = pg.ExecParams(ctx, s.insert.text, params, s.insert.params, inBinary, inBinary)
	}
	if _, err = result.Close(); err == nil {
		return nil
	}
	// An error that the server reports has undone the statement. But if the error is the last
	// message of this connection, the commit may have come before it.
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.SeverityUnlocalized == "ERROR" || pgconn.SafeToRetry(err) {
		return err
	}
	return &sqllog.Uncertain{Err: err}
}

// Commit implements sqllog.Store.
func (s *store) Commit(ctx context.Context, group int64, member string, lanes []sqllog.Progress) (int, error) {
	shards, epochs, positions, windows := make([]int16, len(lanes)), make([]int64, len(lanes)), make([]int64, len(lanes)), make([][]byte, len(lanes))
	stored, tops, ids, changes := make([]int64, len(lanes)), make([]int64, len(lanes)), make([]string, len(lanes)), make([]int64, len(lanes))
	for i, l := range lanes {
		stored[i], tops[i], ids[i], changes[i] = l.Basis.Stored, l.Basis.Top, l.Basis.ID, l.Basis.Changes
		shards[i], epochs[i], positions[i] = int16(l.Shard), int64(l.Epoch), l.Position
		if len(l.Window) > 0 {
			windows[i] = l.Window
		}
	}
	// Planned each time, as read is.
	tag, err := s.pool.Exec(ctx, s.of(lanes[0].Basis.Topic).commit, pgx.QueryExecModeExec, group, member, lanes[0].Basis.Topic, shards, epochs, positions, windows, stored, tops, ids, changes)
	return int(tag.RowsAffected()), err
}

// Fault implements sqllog.Store.
func (s *store) Fault(err error) sqllog.Fault {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if isTLSRefusal(err) {
			return sqllog.Fault{Retryable: s.opened.Load(), Denied: true}
		}
		// Not the server's word: the network, or a context.
		return sqllog.Fault{Retryable: !errors.Is(err, sql.ErrConnDone) && !isClosedPool(err)}
	}
	switch {
	case strings.HasPrefix(e.Code, "54"): // a limit of the program
		return sqllog.Fault{OfMessage: true, TooLarge: true}
	case strings.HasPrefix(e.Code, "22"), strings.HasPrefix(e.Code, "23"): // data, a constraint
		return sqllog.Fault{OfMessage: true}
	case e.Code == "25006": // read only: a standby, until it is promoted or the address leads elsewhere
		return sqllog.Fault{Retryable: true}
	}
	for _, class := range []string{"08", "26", "40", "53", "55", "57", "58", "XX"} {
		if strings.HasPrefix(e.Code, class) {
			return sqllog.Fault{Retryable: true}
		}
	}
	// No privilege, wrong password, no such table: no message is at fault, and while a bus is open
	// the error passes.
	return sqllog.Fault{Retryable: s.opened.Load(), Denied: true}
}

// isClosedPool says whether the pool was closed by its owner. The library wraps no error value for
// it.
func isClosedPool(err error) bool { return strings.Contains(err.Error(), "closed pool") }
