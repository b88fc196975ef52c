package mysql

import (
	"cmp"
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-sql-driver/mysql"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// store implements sqllog.Store.
type store struct {
	db      *sql.DB
	keeper  *sql.DB // the same, if it is the caller's
	owned   bool
	opened  atomic.Bool
	dialect *sqllog.Dialect

	log, event tables // of topics and of event stores
	inserts    inserts
}

// tables are the statements on a topic's messages.
type tables struct{ name, head, commit, settle string }

// of returns the statements on a topic's messages.
func (s *store) of(topic int64) *tables {
	if topic < 0 {
		return &s.event
	}
	return &s.log
}

// onTable makes the statements on the messages in a table.
func onTable(d *sqllog.Dialect, table string) tables {
	of := func(text string) string { return d.SQL(strings.ReplaceAll(text, "{of}", table)) }
	return tables{
		name: d.SQL(table),
		head: of("SELECT COALESCE(MAX(last), 0) FROM (SELECT MAX(seq) AS last FROM {of} WHERE topic = ? GROUP BY shard) lasts"),
		commit: of(`{lane} l ON l.grp = ? AND l.shard = c.shard SET l.win = c.win, l.pos = c.pos
WHERE l.owner = ? AND l.epoch = c.epoch AND l.pos <= c.pos AND l.pos >= c.base
AND (c.top = 0 OR (SELECT m.id FROM {of} m WHERE m.topic = ? AND m.shard = l.shard AND m.seq = c.top) = c.id)
AND (c.chg = 0 OR (SELECT p.chg FROM {parked} p WHERE p.grp = l.grp AND p.shard = l.shard AND p.pos = 0) >= c.chg)`),
		settle: of(settleText),
	}
}

func (s *store) init() {
	s.log, s.event = onTable(s.dialect, "{log}"), onTable(s.dialect, "{event}")
	s.inserts.init(s.db, s.dialect)
}

func (s *store) Dialect() *sqllog.Dialect { return s.dialect }
func (s *store) DB() *sql.DB              { return s.db }
func (s *store) KeeperDB() *sql.DB        { return s.keeper }

func (s *store) As(target any) bool {
	if db, ok := target.(**sql.DB); ok {
		*db = s.db
		return true
	}
	return false
}

func (s *store) Close() error {
	s.inserts.close()
	if s.owned {
		return errors.Join(s.keeper.Close(), s.db.Close())
	}
	return nil
}

// Head implements sqllog.Store. Messages with smaller numbers than a visible message are visible,
// because the topic's row was locked until then.
func (s *store) Head(ctx context.Context, topic int64) (head int64, err error) {
	err = s.db.QueryRowContext(ctx, s.of(topic).head, topic).Scan(&head)
	return head, err
}

// Last implements sqllog.Store.
func (s *store) Last(ctx context.Context, db *sql.DB, topic int64) (last int64, err error) {
	err = db.QueryRowContext(ctx, s.of(topic).head, topic).Scan(&last)
	return last, err
}

// Append implements sqllog.Store: one statement if it can be, which is a transaction of its own.
func (s *store) Append(ctx context.Context, batch []sqllog.Record) error {
	pieces, err := s.cut(ctx, batch)
	defer func() {
		for _, p := range pieces {
			s.inserts.put(p.insert)
		}
	}()
	if err != nil {
		return err
	}
	b := buffers.Get().(*buffer)
	defer b.free()
	if len(pieces) == 1 {
		_, err := pieces[0].insert.ExecContext(ctx, b.rows(pieces[0].records)...)
		return finish(err)
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, p := range pieces {
		if _, err := tx.StmtContext(ctx, p.insert.Stmt).ExecContext(ctx, b.rows(p.records)...); err != nil {
			return err
		}
	}
	return finish(tx.Commit())
}

// piece is a part of a batch that one statement inserts.
type piece struct {
	records []sqllog.Record
	insert  *insert
}

// cut returns the pieces of a batch with their statements. They are prepared here and not inside
// the transaction, where preparing would need a second connection.
func (s *store) cut(ctx context.Context, batch []sqllog.Record) (pieces []piece, err error) {
	for batch = byTopic(batch); len(batch) > 0; {
		for _, size := range s.inserts.sizes(sameTopic(batch)) {
			insert, err := s.inserts.get(ctx, size)
			if err != nil {
				return pieces, err
			}
			pieces = append(pieces, piece{batch[:size], insert})
			batch = batch[size:]
		}
	}
	return pieces, nil
}

// byTopic returns a batch in the order of the topics' ids, in which they are locked, so that two
// batches cannot wait for each other.
func byTopic(batch []sqllog.Record) []sqllog.Record {
	compare := func(a, b sqllog.Record) int { return cmp.Compare(a.Topic, b.Topic) }
	if slices.IsSortedFunc(batch, compare) {
		return batch
	}
	batch = slices.Clone(batch)
	slices.SortStableFunc(batch, compare)
	return batch
}

// sameTopic returns how many of the first messages have one topic.
func sameTopic(batch []sqllog.Record) int {
	n := 1
	for n < len(batch) && batch[n].Topic == batch[0].Topic {
		n++
	}
	return n
}

// buffer is the memory of a statement's parameters.
type buffer struct{ args []any }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// free gives the buffer back, without the values it points to.
func (b *buffer) free() {
	clear(b.args[:cap(b.args)])
	buffers.Put(b)
}

// rows returns the parameters of messages, until the next call.
func (b *buffer) rows(records []sqllog.Record) []any {
	b.args = slices.Grow(b.args[:0], len(records)*columns)
	for i := range records {
		b.args = appendRow(b.args, &records[i])
	}
	return b.args
}

// columns is how many parameters a message has.
const columns = 11

func appendRow(args []any, r *sqllog.Record) []any {
	m := r.Message
	return sqlmessage.AppendArgs(append(args, r.Topic, r.Shard, sqlmessage.Nanos(m.Time), m.ID, m.Key), m)
}

// finish judges the error of a statement that commits. A statement that the server answers with an
// error has not been committed. The exceptions: the server was told to end meanwhile, or says that
// the error happened during the commit. A statement that was not sent at all has not been committed
// either.
func finish(err error) error {
	if err == nil || errors.Is(err, sqldriver.ErrBadConn) || errors.Is(err, mysql.ErrPktTooLarge) {
		return err
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "dial" {
		return err
	}
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok && !slices.Contains(uncertain, e.Number) {
		return err
	}
	return &sqllog.Uncertain{Err: err}
}

// Commit implements sqllog.Store. The rows are looked up one by one, by the whole primary key: a
// condition on all of them may become a scan of the index, which locks the rows of other groups
// too. The subqueries name the lane's row, so that it is locked before theirs, as everybody does.
func (s *store) Commit(ctx context.Context, group int64, member string, lanes []sqllog.Progress) (int, error) {
	const row = "SELECT ? AS shard, ? AS epoch, ? AS pos, CAST(? AS BINARY) AS win, ? AS base, ? AS top, ? AS id, ? AS chg"
	args := make([]any, 0, 8*len(lanes)+4)
	for _, l := range lanes {
		var win any
		if len(l.Window) > 0 {
			win = l.Window
		}
		b := &l.Basis
		args = append(args, l.Shard, l.Epoch, l.Position, win, b.Stored, b.Top, b.ID, b.Changes)
	}
	query := "UPDATE (" + row + strings.Repeat(" UNION ALL "+row, len(lanes)-1) + ") c STRAIGHT_JOIN " + s.of(lanes[0].Basis.Topic).commit
	r, err := s.db.ExecContext(ctx, query, append(args, group, member, lanes[0].Basis.Topic)...)
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	return int(n), err
}

// Errors of the server.
const (
	errAccessDatabase  = 1044
	errAccess          = 1045
	errNull            = 1048
	errTableAccess     = 1142
	errPacketTooLarge  = 1153
	errTooLongData     = 1301 // a result of a function
	errUnknown         = 1105
	errIncorrectString = 1366
	errTooLong         = 1406
	errNoTable         = 1146
	errSyntax          = 1064
	errUnknownDatabase = 1049
	errUnknownColumn   = 1054
	errNoDefault       = 1364

	errWrite            = 1026
	errShutdown         = 1053
	errDuringCommit     = 1180
	errInterrupted      = 1317
	errConnectionKilled = 1927 // MariaDB
	errStatementTimeout = 1969 // MariaDB
	errSessionKilled    = 3169 // MySQL
)

// uncertain are errors that may come after a commit.
var uncertain = []uint16{errWrite, errShutdown, errDuringCommit, errInterrupted, errConnectionKilled, errStatementTimeout, errSessionKilled}

// Fault implements sqllog.Store. Most faults that the server reports pass: locks, shutdowns, a
// failover, a full disk.
func (s *store) Fault(err error) sqllog.Fault {
	if errors.Is(err, mysql.ErrPktTooLarge) {
		return sqllog.Fault{OfMessage: true, TooLarge: true}
	}
	e, ok := errors.AsType[*mysql.MySQLError](err)
	if driver.IsTLSRefusal(err) || errors.Is(err, mysql.ErrNoTLS) {
		return sqllog.Fault{Retryable: s.opened.Load(), Denied: true}
	}
	if !ok {
		// The network, or a context.
		return sqllog.Fault{Retryable: !strings.Contains(err.Error(), "sql: database is closed"), Disconnected: errors.Is(err, mysql.ErrInvalidConn)}
	}
	switch e.Number {
	case errPacketTooLarge, errTooLongData:
		return sqllog.Fault{OfMessage: true, TooLarge: true}
	case errUnknown: // of a parameter that was sent in parts; MariaDB and MySQL have no number for it
		if strings.Contains(e.Message, "max_allowed_packet") {
			return sqllog.Fault{OfMessage: true, TooLarge: true}
		}
	case errTooLong, errIncorrectString, errNull:
		return sqllog.Fault{OfMessage: true}
	case errAccessDatabase, errAccess, errTableAccess, errUnknownDatabase, errNoTable, errSyntax, errUnknownColumn, errNoDefault:
		// That is no message's fault, and while a bus is open it passes.
		return sqllog.Fault{Retryable: s.opened.Load(), Denied: true}
	}
	return sqllog.Fault{Retryable: true}
}
