package postgres

import (
	"context"
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// The statements below go through transactions of any client library. So parameters are texts,
// numbers and bytes only, and arrays are in their text form.

// settleText also has the server end the session if it hears nothing from the session for this long
// while the transaction is open. Otherwise a vanished host would hold the lane's row, and the lock
// that readers of the outputs wait for, until the network gives up.
const settleText = `WITH settled AS (UPDATE {lane} SET pos = ?, win = ? WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ? AND pos <= ? AND pos >= ?
AND (CAST(? AS int8) = 0 OR (SELECT m.id FROM {log} m WHERE m.topic = ? AND m.shard = ? AND m.seq = ?) = ?)
AND (CAST(? AS int8) = 0 OR (SELECT p.chg FROM {parked} p WHERE p.grp = ? AND p.shard = ? AND p.pos = 0) >= ?) RETURNING 1)
SELECT set_config('idle_in_transaction_session_timeout', '10000', TRUE) FROM settled`

// Settle implements sqllog.Store.
func (s *store) Settle(ctx context.Context, x driver.Execer, group int64, member string, p sqllog.Progress) (bool, error) {
	b := &p.Basis
	r, err := x.ExecContext(ctx, s.dialect.SQL(settleText), p.Position, p.Window, group, p.Shard, member, int64(p.Epoch), p.Position, b.Stored,
		b.Top, b.Topic, p.Shard, b.Top, b.ID, b.Changes, group, p.Shard, b.Changes)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

// AppendIn implements sqllog.Store.
func (s *store) AppendIn(ctx context.Context, x driver.Execer, batch []sqllog.Record) error {
	var columns [12]textArray
	for i := range batch {
		r, m := &batch[i], batch[i].Message
		if i == 0 || r.Topic != batch[i-1].Topic {
			columns[0].number(r.Topic)
		}
		columns[1].number(r.Topic)
		columns[2].number(int64(r.Shard))
		columns[3].number(sqlmessage.Nanos(m.Time))
		columns[4].text(m.ID)
		columns[5].bytes([]byte(m.Key))
		columns[6].text(m.Type)
		columns[7].text(m.Source)
		columns[8].text(m.Subject)
		columns[9].text(m.ContentType)
		if headers, ok := sqlmessage.EncodeHeaders(m); ok {
			columns[10].text(headers)
		} else {
			columns[10].null()
		}
		if m.Payload != nil {
			columns[11].bytes(m.Payload)
		} else {
			columns[11].null()
		}
	}
	args := make([]any, 0, 1+len(columns))
	args = append(args, s.class)
	for i := range columns {
		args = append(args, columns[i].String())
	}
	_, err := x.ExecContext(ctx, s.insert.text, args...)
	return err
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
