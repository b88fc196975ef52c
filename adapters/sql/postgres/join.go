package postgres

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// The statements below go through transactions of any client library. So parameters are texts,
// numbers and bytes only, and arrays are in their text form.

// settleText also has the server end the session if the transaction stands still for ten seconds
// from then on, or for the session's own limit if that is shorter. Otherwise a vanished host would
// hold the lane's row, and the lock that readers of the outputs wait for, until the network gives
// up.
const settleText = settleStart + settleEnd

// settlePlacedText settles if the row is still at a place in the table.
const settlePlacedText = settleStart + " AND ctid = CAST(? AS tid)" + settleEnd

const settleStart = `WITH settled AS (UPDATE {lane} SET pos = ?, win = ? WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ? AND pos <= ? AND pos >= ?
AND (CAST(? AS int8) = 0 OR (SELECT m.id FROM {of} m WHERE m.topic = ? AND m.shard = ? AND m.seq = ?) = ?)
AND (CAST(? AS int8) = 0 OR (SELECT p.chg FROM {parked} p WHERE p.grp = ? AND p.shard = ? AND p.pos = 0) >= ?)`

const settleEnd = ` RETURNING ctid)
SELECT CAST(ctid AS text), set_config('idle_in_transaction_session_timeout',
CASE WHEN CAST(current_setting('idle_in_transaction_session_timeout') AS interval) BETWEEN '1ms' AND '10s'
THEN current_setting('idle_in_transaction_session_timeout') ELSE '10s' END, TRUE) FROM settled`

// Settle implements sqllog.Store. It asks for the row at the place where the last settlement has
// left it: a search by key visits every version of the row that the server keeps, and while
// somebody has a snapshot, the server keeps them all.
func (s *store) Settle(ctx context.Context, x driver.Execer, group int64, member string, p *sqllog.Progress) (bool, error) {
	b := &p.Basis
	args := []any{
		p.Position, p.Window, group, p.Shard, member, int64(p.Epoch), p.Position, b.Stored,
		b.Top, b.Topic, p.Shard, b.Top, b.ID, b.Changes, group, p.Shard, b.Changes,
	}
	of := s.of(b.Topic)
	place, scan := p.Place, rowScanner(x)
	p.Place = ""
	if scan == nil {
		r, err := x.ExecContext(ctx, of.settle, args...)
		if err != nil {
			return false, err
		}
		n, err := r.RowsAffected()
		return n > 0, err
	}
	var timeout string
	err := sql.ErrNoRows
	if isFar(place) {
		err = scan(ctx, of.settlePlaced, append(args, place), &p.Place, &timeout)
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = scan(ctx, of.settle, args, &p.Place, &timeout)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// rowScanner returns the function that reads a row in the transaction x. nil: x can only execute
// statements.
func rowScanner(x driver.Execer) func(ctx context.Context, query string, args []any, dest ...any) error {
	switch x := x.(type) {
	case driver.RowScanner:
		return x.ScanRow
	case interface {
		QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	}:
		return func(ctx context.Context, query string, args []any, dest ...any) error {
			return x.QueryRowContext(ctx, query, args...).Scan(dest...)
		}
	}
	return nil
}

// fewPages is a table's size at which reading it costs more than reading one page of it. A
// connection may keep the plan of a statement that it prepares when the table is smaller: to read
// the whole table, however large it becomes.
const fewPages = 16

// isFar says whether a place, "(page,row)", proves that the table is not smaller than fewPages.
func isFar(place string) bool {
	page, _, _ := strings.Cut(strings.TrimPrefix(place, "("), ",")
	n, err := strconv.Atoi(page)
	return err == nil && n >= fewPages
}

// AppendIn implements sqllog.Store.
func (s *store) AppendIn(ctx context.Context, x driver.Execer, batch []sqllog.Record) error {
	var locked, topics, shards, keys textArray
	var a messageArrays
	for i := range batch {
		r := &batch[i]
		if i == 0 || r.Topic != batch[i-1].Topic {
			locked.number(r.Topic)
		}
		topics.number(r.Topic)
		shards.number(int64(r.Shard))
		keys.bytes([]byte(r.Message.Key))
		a.add(r.Message)
	}
	_, err := x.ExecContext(ctx, s.insert.text, s.class, locked.String(), topics.String(), shards.String(), a.times.String(), a.ids.String(), keys.String(),
		a.types.String(), a.sources.String(), a.subjects.String(), a.contents.String(), a.headers.String(), a.payloads.String())
	return err
}

// messageArrays are the fields of messages as parameters of a statement.
type messageArrays struct{ times, ids, types, sources, subjects, contents, headers, payloads textArray }

func (a *messageArrays) add(m *bus.Message) {
	a.times.number(sqlmessage.Nanos(m.Time))
	a.ids.text(m.ID)
	a.types.text(m.Type)
	a.sources.text(m.Source)
	a.subjects.text(m.Subject)
	a.contents.text(m.ContentType)
	if headers, ok := sqlmessage.EncodeHeaders(m); ok {
		a.headers.text(headers)
	} else {
		a.headers.null()
	}
	if m.Payload != nil {
		a.payloads.bytes(m.Payload)
	} else {
		a.payloads.null()
	}
}

// textArray is an array in PostgreSQL's text form.
type textArray struct{ b strings.Builder }

func (a *textArray) next() {
	if a.b.Len() == 0 {
		a.b.WriteByte('{')
	} else {
		a.b.WriteByte(',')
	}
}

func (a *textArray) null() {
	a.next()
	a.b.WriteString("NULL")
}

func (a *textArray) number(n int64) {
	a.next()
	a.b.WriteString(strconv.FormatInt(n, 10))
}

var escapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func (a *textArray) text(s string) {
	a.next()
	a.b.WriteByte('"')
	_, _ = escapes.WriteString(&a.b, s) // a Builder does not fail
	a.b.WriteByte('"')
}

const hexDigits = "0123456789abcdef"

func (a *textArray) bytes(p []byte) {
	a.next()
	a.b.Grow(2*len(p) + 6)
	a.b.WriteString(`"\\x`)
	for _, c := range p {
		a.b.WriteByte(hexDigits[c>>4])
		a.b.WriteByte(hexDigits[c&15])
	}
	a.b.WriteByte('"')
}

func (a *textArray) String() string { return a.b.String() + "}" }
