package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/go-sql-driver/mysql"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// store implements sqllog.Store.
type store struct {
	db      *sql.DB
	owned   bool
	dialect *sqllog.Dialect

	next, head string
	inserts    []*insert
}

// insert is a statement that inserts so many messages at once.
type insert struct {
	rows int
	text string

	mu   sync.Mutex
	stmt *sql.Stmt
}

// insertSizes are what batches are made of: prepared statements spare the server the reading of long texts, and the few
// sizes spare it the preparing.
var insertSizes = []int{256, 64, 16, 4, 1}

func (s *store) init() {
	s.next = s.dialect.SQL("UPDATE {topic} SET next = LAST_INSERT_ID(next + ?) WHERE id = ?")
	s.head = s.dialect.SQL("SELECT next - 1 FROM {topic} WHERE id = ?")
	row := "(?, ?, ?, " + now + ", ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	for _, n := range insertSizes {
		s.inserts = append(s.inserts, &insert{rows: n, text: s.dialect.SQL(
			"INSERT INTO {log} (topic, shard, seq, created, time, id, msg_key, type, source, subject, content_type, headers, payload) VALUES " +
				strings.Repeat(row+", ", n-1) + row)})
	}
}

func (i *insert) prepared(ctx context.Context, db *sql.DB) (*sql.Stmt, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stmt == nil {
		stmt, err := db.PrepareContext(ctx, i.text)
		if err != nil {
			return nil, err
		}
		i.stmt = stmt
	}
	return i.stmt, nil
}

func (s *store) Dialect() *sqllog.Dialect { return s.dialect }
func (s *store) DB() *sql.DB              { return s.db }

func (s *store) As(target any) bool {
	if db, ok := target.(**sql.DB); ok {
		*db = s.db
		return true
	}
	return false
}

func (s *store) Close() error {
	for _, i := range s.inserts {
		if i.stmt != nil {
			i.stmt.Close()
		}
	}
	if s.owned {
		return s.db.Close()
	}
	return nil
}

// Head implements sqllog.Store. What has a number below is visible, because the number's row was locked until then.
func (s *store) Head(ctx context.Context, topic int64) (head int64, err error) {
	err = s.db.QueryRowContext(ctx, s.head, topic).Scan(&head)
	return head, err
}

// Append implements sqllog.Store.
func (s *store) Append(ctx context.Context, batch []sqllog.Record) error {
	for _, i := range s.inserts { // not inside the transaction, where it would need a second connection
		if i.rows > len(batch) {
			continue
		}
		if _, err := i.prepared(ctx, s.db); err != nil {
			return err
		}
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	next, err := s.numbers(ctx, tx, batch)
	if err != nil {
		return err
	}
	args := make([]any, 0, 12*min(len(batch), insertSizes[0]))
	for len(batch) > 0 {
		i := slices.IndexFunc(s.inserts, func(i *insert) bool { return i.rows <= len(batch) })
		insert := s.inserts[i]
		args = args[:0]
		for j := range insert.rows {
			r := &batch[j]
			args = appendRow(args, r, next[r.Topic])
			next[r.Topic]++
		}
		if _, err := tx.StmtContext(ctx, insert.stmt).ExecContext(ctx, args...); err != nil {
			return err
		}
		batch = batch[insert.rows:]
	}
	return finish(tx.Commit())
}

// numbers draws the numbers of a batch, and returns the first for each topic. It locks the topics' rows until the
// commit, in one order, so that two batches cannot wait for each other.
func (s *store) numbers(ctx context.Context, tx bus.Execer, batch []sqllog.Record) (map[int64]int64, error) {
	count := map[int64]int64{}
	var topics []int64
	for i := range batch {
		if count[batch[i].Topic] == 0 {
			topics = append(topics, batch[i].Topic)
		}
		count[batch[i].Topic]++
	}
	slices.Sort(topics)
	first := map[int64]int64{}
	for _, t := range topics {
		r, err := tx.ExecContext(ctx, s.next, count[t], t)
		if err != nil {
			return nil, err
		}
		next, err := r.LastInsertId()
		if err != nil {
			return nil, err
		}
		first[t] = next - count[t]
	}
	return first, nil
}

func appendRow(args []any, r *sqllog.Record, seq int64) []any {
	m := r.Message
	var headers, payload any
	if text, ok := sqlmessage.EncodeHeaders(m); ok {
		headers = text
	}
	if m.Payload != nil {
		payload = m.Payload
	}
	return append(args, r.Topic, r.Shard, seq, sqlmessage.Nanos(m.Time), m.ID, []byte(m.Key), m.Type, m.Source, m.Subject, m.ContentType, headers, payload)
}

// finish judges a commit's error. What the server answers has not been committed, unless it was told to end meanwhile.
func finish(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok && e.Number == errDeadlock {
		return err
	}
	return &sqllog.Uncertain{Err: err}
}

// Commit implements sqllog.Store.
func (s *store) Commit(ctx context.Context, group int64, member string, lanes []sqllog.Progress) (int, error) {
	var pos, win, in strings.Builder
	var positions, windows, keys []any
	for i, l := range lanes {
		pos.WriteString(" WHEN ? THEN ?")
		positions = append(positions, l.Shard, l.Position)
		win.WriteString(" WHEN ? THEN ?")
		var w any
		if len(l.Window) > 0 {
			w = l.Window
		}
		windows = append(windows, l.Shard, w)
		if i > 0 {
			in.WriteString(", ")
		}
		in.WriteString("(?, ?, ?)")
		keys = append(keys, group, l.Shard, l.Epoch)
	}
	at := "CASE shard" + pos.String() + " END"
	query := fmt.Sprintf("UPDATE {lane} SET win = CASE shard%s END, pos = %s WHERE (grp, shard, epoch) IN (%s) AND owner = ? AND pos <= %s", win.String(), at, in.String(), at)
	args := slices.Concat(windows, positions, keys, []any{member}, positions)
	r, err := s.db.ExecContext(ctx, strings.Replace(query, "{lane}", s.dialect.Prefix+"lane", 1), args...)
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
	errDeadlock        = 1213
	errIncorrectString = 1366
	errTooLong         = 1406
	errNoTable         = 1146
	errSyntax          = 1064
	errUnknownDatabase = 1049
	errUnknownColumn   = 1054
)

// Fault implements sqllog.Store. Most of what the server reports passes: locks, shutdowns, a failover, a full disk.
func (s *store) Fault(err error) sqllog.Fault {
	if errors.Is(err, mysql.ErrPktTooLarge) {
		return sqllog.Fault{OfMessage: true, TooLarge: true}
	}
	e, ok := errors.AsType[*mysql.MySQLError](err)
	if !ok {
		return sqllog.Fault{Retryable: !strings.Contains(err.Error(), "sql: database is closed")} // the network, or a context
	}
	switch e.Number {
	case errPacketTooLarge:
		return sqllog.Fault{OfMessage: true, TooLarge: true}
	case errTooLong, errIncorrectString, errNull:
		return sqllog.Fault{OfMessage: true}
	case errAccessDatabase, errAccess, errTableAccess, errUnknownDatabase, errNoTable, errSyntax, errUnknownColumn:
		return sqllog.Fault{}
	}
	return sqllog.Fault{Retryable: true}
}
