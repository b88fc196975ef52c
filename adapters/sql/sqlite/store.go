package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// store implements sqllog.Store.
type store struct {
	dialect *sqllog.Dialect
	write   *sql.DB // one connection, if it is ours
	read    *sql.DB // the same pool for a database in memory or of the caller
	owned   bool

	mu     sync.Mutex
	topics map[int64]*statements
}

// statements are the statements of one topic.
type statements struct {
	insert, insertMany prepared // of one message, of insertRows
	head, read         prepared
	commit, witness    prepared
	lastEvent, event   prepared // of a store
	isStore            bool
}

// prepared is a statement that is prepared when it is first needed.
type prepared struct {
	db   *sql.DB
	text string

	mu   sync.Mutex
	stmt *sql.Stmt
}

func (p *prepared) get() (*sql.Stmt, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stmt == nil {
		stmt, err := p.db.PrepareContext(context.Background(), p.text)
		if err != nil {
			return nil, err
		}
		p.stmt = stmt
	}
	return p.stmt, nil
}

func (p *prepared) close() {
	if p.stmt != nil {
		p.stmt.Close()
	}
}

// insertRows is how many messages one statement inserts: more than one saves about a fifth of the
// time.
const insertRows = 16

func (s *store) init() {
	s.topics = map[int64]*statements{}
}

func (s *store) topic(id int64) *statements {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[id]
	if t == nil {
		log, _ := s.dialect.Log(id)
		insert := "INSERT INTO " + log + insertColumns + "VALUES "
		row := "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
		version := ""
		if id < 0 {
			version = ", version"
		}
		t = &statements{
			insert:     prepared{db: s.write, text: insert + row},
			insertMany: prepared{db: s.write, text: insert + strings.Repeat(row+", ", insertRows-1) + row},
			head:       prepared{db: s.read, text: "SELECT COALESCE(MAX(seq), 0) FROM " + log},
			commit: prepared{db: s.write, text: s.dialect.SQL("UPDATE {lane} SET pos = ?, win = ? WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ? AND pos <= ? AND pos >= ?" +
				" AND (? = 0 OR (SELECT id FROM " + log + " WHERE seq = ?) = ?) AND (? = 0 OR (SELECT p.chg FROM {parked} p WHERE p.grp = ? AND p.shard = ? AND p.pos = 0) >= ?)")},
			witness: prepared{db: s.read, text: "SELECT COUNT(*) FROM " + log + " WHERE seq = ? AND id = ?"},
			// The shards wanted are four masks of 64 bits, so that one statement does for any set
			// of them.
			read: prepared{db: s.read, text: "SELECT seq, shard, id, msg_key, type, source, subject, time, content_type, headers, payload" + version + " FROM " + log +
				" WHERE seq >= ? AND seq <= ? AND ((CASE shard >> 6 WHEN 0 THEN ? WHEN 1 THEN ? WHEN 2 THEN ? ELSE ? END) >> (shard & 63)) & 1 ORDER BY seq"},
		}
		t.initEvents(s, id, log)
		s.topics[id] = t
	}
	return t
}

func (s *store) Dialect() *sqllog.Dialect { return s.dialect }
func (s *store) DB() *sql.DB              { return s.write }
func (s *store) KeeperDB() *sql.DB        { return s.write }

func (s *store) As(target any) bool {
	if db, ok := target.(**sql.DB); ok {
		*db = s.read
		return true
	}
	return false
}

func (s *store) Close() error {
	for _, t := range s.topics {
		for _, p := range []*prepared{&t.insert, &t.insertMany, &t.head, &t.read, &t.commit, &t.witness, &t.lastEvent, &t.event} {
			p.close()
		}
	}
	if !s.owned {
		return nil
	}
	err := s.write.Close()
	if s.read != s.write {
		err = errors.Join(err, s.read.Close())
	}
	return err
}

// Head implements sqllog.Store. Visible messages have no gaps, because there is one writer at a
// time.
func (s *store) Head(ctx context.Context, topic int64) (head int64, err error) {
	stmt, err := s.topic(topic).head.get()
	if err != nil {
		return 0, err
	}
	err = stmt.QueryRowContext(ctx).Scan(&head)
	return head, err
}

// Last implements sqllog.Store.
func (s *store) Last(ctx context.Context, _ *sql.DB, topic int64) (int64, error) {
	return s.Head(ctx, topic)
}

// Append implements sqllog.Store. Its statements are short and wait for other processes at most for
// the busy timeout. So they do without the context: watching it costs this library a goroutine a
// statement.
func (s *store) Append(_ context.Context, batch []sqllog.Record) error {
	ctx := context.Background()
	type insert struct {
		records   []sqllog.Record
		one, many *sql.Stmt
	}
	var inserts []insert
	for len(batch) > 0 {
		n := 1
		for n < len(batch) && batch[n].Topic == batch[0].Topic {
			n++
		}
		t := s.topic(batch[0].Topic)
		one, err := t.insert.get()
		if err != nil {
			return err
		}
		many, err := t.insertMany.get()
		if err != nil {
			return err
		}
		inserts = append(inserts, insert{batch[:n], one, many})
		batch = batch[n:]
	}
	if len(inserts) == 1 && len(inserts[0].records) == 1 { // a statement is a transaction by itself
		_, err := inserts[0].one.ExecContext(ctx, appendRow(nil, &inserts[0].records[0], time.Now().UnixMicro())...)
		return s.finish(err)
	}
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	created := time.Now().UnixMicro() // inside the transaction, so that it grows with the position
	args := make([]any, 0, insertRows*11)
	for _, in := range inserts {
		one, many := tx.StmtContext(ctx, in.one), tx.StmtContext(ctx, in.many)
		for records := in.records; len(records) > 0; {
			n, stmt := 1, one
			if len(records) >= insertRows {
				n, stmt = insertRows, many
			}
			args = args[:0]
			for i := range n {
				args = appendRow(args, &records[i], created)
			}
			if _, err := stmt.ExecContext(ctx, args...); err != nil {
				return err
			}
			records = records[n:]
		}
	}
	return s.finish(tx.Commit())
}

// insertColumns are the columns of appendRow.
const insertColumns = " (shard, created, time, id, msg_key, " + sqlmessage.Columns + ") "

func appendRow(args []any, r *sqllog.Record, created int64) []any {
	m := r.Message
	args = slices.Grow(args, 11)
	return sqlmessage.AppendArgs(append(args, r.Shard, created, sqlmessage.Nanos(m.Time), m.ID, []byte(m.Key)), m)
}

// finish judges the error of a statement that commits. If the file was busy, the disk full or the
// message too large, it was rolled back. After any other failure the transaction may turn up when
// the file is opened again.
func (s *store) finish(err error) error {
	if err == nil {
		return nil
	}
	if code, ok := resultCode(err); ok && (code == sqlite3.SQLITE_BUSY || code == sqlite3.SQLITE_FULL || code == sqlite3.SQLITE_TOOBIG) {
		return err
	}
	return &sqllog.Uncertain{Err: err}
}

// Commit implements sqllog.Store.
func (s *store) Commit(_ context.Context, group int64, member string, lanes []sqllog.Progress) (int, error) {
	ctx := context.Background()
	update, err := s.topic(lanes[0].Basis.Topic).commit.get()
	if err != nil {
		return 0, err
	}
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	stmt := tx.StmtContext(ctx, update)
	n := 0
	for _, l := range lanes {
		r, err := stmt.ExecContext(ctx, commitArgs(group, member, &l)...)
		if err != nil {
			return 0, err
		}
		rows, err := r.RowsAffected()
		if err != nil {
			return 0, err
		}
		n += int(rows)
	}
	return n, s.finish(tx.Commit())
}

func commitArgs(group int64, member string, p *sqllog.Progress) []any {
	var win any
	if len(p.Window) > 0 {
		win = p.Window
	}
	b := &p.Basis
	return []any{p.Position, win, group, p.Shard, member, int64(p.Epoch), p.Position, b.Stored, b.Top, b.Top, b.ID, b.Changes, group, p.Shard, b.Changes}
}

func resultCode(err error) (int, bool) {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return 0, false
	}
	return e.Code() & 0xff, true // the rest is detail
}

// Fault implements sqllog.Store.
func (s *store) Fault(err error) sqllog.Fault {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return sqllog.Fault{Retryable: true}
	}
	code, _ := resultCode(err)
	switch code {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT:
		return sqllog.Fault{Retryable: true}
	case sqlite3.SQLITE_TOOBIG:
		return sqllog.Fault{OfMessage: true, TooLarge: true}
	}
	return sqllog.Fault{}
}

// reader implements sqllog.Reader.
type reader struct {
	of      *statements
	decoder sqllog.Decoder
	from    [sqllog.MaxShards]int64
}

func (s *store) Reader(topic int64) sqllog.Reader { return &reader{of: s.topic(topic)} }

// Read implements sqllog.Reader. The table is in the order of positions, so one pass serves all
// shards.
func (r *reader) Read(_ context.Context, q *sqllog.Query) (sqllog.More, error) {
	ctx := context.Background() // as in Append
	headStmt, err := r.of.head.get()
	if err != nil {
		return 0, err
	}
	var head int64
	if err := headStmt.QueryRowContext(ctx).Scan(&head); err != nil {
		return 0, err
	}
	lowest := head + 1
	var masks [4]uint64
	for _, c := range q.Cursors {
		r.from[c.Shard] = c.From
		lowest = min(lowest, c.From)
		masks[c.Shard>>6] |= 1 << (c.Shard & 63)
	}
	if lowest > head {
		return sqllog.Drained, nil
	}
	stmt, err := r.of.read.get()
	if err != nil {
		return 0, err
	}
	rows, err := stmt.QueryContext(ctx, lowest, head, int64(masks[0]), int64(masks[1]), int64(masks[2]), int64(masks[3]))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	more, through := sqllog.Drained, head
	for bytes := 0; rows.Next(); {
		if len(q.Records) >= q.Limit || bytes >= q.Bytes {
			more, through = sqllog.Ready, q.Records[len(q.Records)-1].Seq
			break
		}
		record, err := r.scan(rows)
		if err != nil {
			return 0, err
		}
		if record.Seq < r.from[record.Shard] {
			continue
		}
		q.Records = append(q.Records, record)
		bytes += record.Message.Size()
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	if err := r.testify(&q.Witness); err != nil {
		return 0, err
	}
	for i := range q.Cursors {
		q.Cursors[i].From = max(q.Cursors[i].From, through+1)
	}
	return more, nil
}

// testify looks for the witness after the rows were read.
func (r *reader) testify(w *sqllog.Witness) error {
	if w.ID == "" {
		return nil
	}
	stmt, err := r.of.witness.get()
	if err != nil {
		return err
	}
	var n int
	if err := stmt.QueryRowContext(context.Background(), w.Seq, w.ID).Scan(&n); err != nil {
		return err
	}
	if n == 0 {
		return sqllog.ErrNoWitness
	}
	return nil
}

func (r *reader) scan(rows *sql.Rows) (sqllog.Record, error) {
	m := r.decoder.New()
	record := sqllog.Record{Message: m}
	var key sql.RawBytes
	var nanos int64
	var headers sql.NullString
	var payload any // a []byte would be nil for an empty blob too
	columns := append(make([]any, 0, 12), &record.Seq, &record.Shard, &m.ID, &key, &m.Type, &m.Source, &m.Subject, &nanos, &m.ContentType, &headers, &payload)
	if r.of.isStore {
		columns = append(columns, &record.Version)
	}
	if err := rows.Scan(columns...); err != nil {
		return record, err
	}
	m.Key = string(key)
	m.Time = time.Unix(0, nanos).UTC()
	switch p := payload.(type) {
	case []byte:
		if m.Payload = p; p == nil {
			m.Payload = []byte{}
		}
	case string: // a foreign program has put it there
		m.Payload = []byte(p)
	}
	sqlmessage.DecodeHeaders(m, headers.String)
	return record, nil
}
