package sqllog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/stored"
)

// Parked messages are rows of a table, with the message in a JSON document. The row with position 0
// is the lane's counter: it gives out positions, and numbers the changes that are made from
// outside, by which the owner finds them. Messages that the owner itself parks have change 0. A row
// without a document was withdrawn, and is deleted when the owner has heard of it.

// parkedDocument is a parked message as it is stored.
type parkedDocument struct {
	stored.Facts
	Message *original `json:"message"`
}

func encodeParked(p *driver.Parking) (string, error) {
	doc, err := json.Marshal(parkedDocument{stored.FactsOf(&p.Delivery), originalOf(p.Message)})
	return string(doc), err
}

func decodeParked(doc []byte, topic string, t bus.Token) (bus.Delivery, error) {
	var p parkedDocument
	if err := json.Unmarshal(doc, &p); err != nil {
		return bus.Delivery{}, err
	}
	if p.Message == nil {
		return bus.Delivery{}, errNoMessage
	}
	d := bus.Delivery{Message: p.Message.message(), Token: t, Topic: topic}
	p.Fill(&d)
	return d, nil
}

var errNoMessage = errors.New("the row has no message")

// parkedID is the id of the message in a document, "" if it cannot be read.
func parkedID(doc []byte) string {
	var d struct {
		Message struct {
			ID string `json:"id"`
		} `json:"message"`
	}
	_ = json.Unmarshal(doc, &d) // then there is none
	return d.Message.ID
}

// parkedRow is a row to store.
type parkedRow struct {
	shard  int32
	pos    int64
	change int64
	due    int64
	free   int
	key    []byte
	doc    string
	// replaces: there may be a row at the position.
	replaces bool
}

const parkedColumns = "(grp, shard, pos, chg, due, free, msg_key, doc)"

const (
	// maxRows bounds the rows and the parameters of one statement.
	maxRows = 100
	// maxDocs bounds its bytes, unless one row has more.
	maxDocs = 1 << 20
)

// insertParked stores rows, each at its position, whatever is there.
func (d *Driver) insertParked(ctx context.Context, tx *sql.Tx, group int64, rows []parkedRow) error {
	for len(rows) > 0 {
		n, bytes := 1, len(rows[0].doc)
		for n < min(len(rows), maxRows) && bytes+len(rows[n].doc) <= maxDocs {
			bytes += len(rows[n].doc)
			n++
		}
		chunk := rows[:n]
		rows = rows[n:]
		for _, r := range chunk {
			if !r.replaces {
				continue
			}
			if _, err := tx.ExecContext(ctx, d.dialect.SQL("DELETE FROM {parked} WHERE grp = ? AND shard = ? AND pos = ?"), group, r.shard, r.pos); err != nil {
				return err
			}
		}
		args := make([]any, 0, 8*len(chunk))
		for _, r := range chunk {
			args = append(args, group, r.shard, r.pos, r.change, r.due, r.free, r.key, r.doc)
		}
		values := strings.TrimSuffix(strings.Repeat("(?, ?, ?, ?, ?, ?, ?, ?),", len(chunk)), ",")
		if _, err := tx.ExecContext(ctx, d.dialect.Compile("INSERT INTO {parked} "+parkedColumns+" VALUES "+values), args...); err != nil {
			return err
		}
	}
	return nil
}

// draw takes n numbers from a lane's counter, and returns the last. The transaction holds the
// counter until it ends. It is updated, and inserted only where it is missing: MySQL's inserts
// leave shared locks and locks of gaps, for which two transactions wait for each other.
func (d *Driver) draw(ctx context.Context, tx *sql.Tx, group int64, shard int32, n int) (last int64, err error) {
	there, err := affected(ctx, tx, d.dialect.SQL("UPDATE {parked} SET chg = chg + ? WHERE grp = ? AND shard = ? AND pos = 0"), n, group, shard)
	if err == nil && there == 0 {
		_, err = tx.ExecContext(ctx, d.dialect.SQL(d.dialect.Draw), group, shard, n, []byte{})
	}
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, d.dialect.SQL("SELECT chg FROM {parked} WHERE grp = ? AND shard = ? AND pos = 0"), group, shard).Scan(&last)
	return last, err
}
