package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// claim reads the oldest rows of the relay's buckets and takes them in hand. It writes nothing: a
// row is the relay's because its bucket is.
func (p *pump) claim(ctx context.Context, limit int) (n int, err error) {
	mine, term := p.keeper.take()
	defer p.using()
	if term != p.term {
		p.term = term
		p.floor.reset()
		clear(p.blocked)
		p.letGo()
	}
	if mine == 0 {
		return 0, nil
	}
	if err := p.floor.step(ctx, p.Relay); err != nil {
		return 0, err
	}
	if n, err = p.take(ctx, mine, p.choose("", limit)); err != nil {
		return n, err
	}
	for topic, c := range p.failing {
		if !c.mayBeClaimed() {
			continue
		}
		m, err := p.take(ctx, mine, p.choose(topic, limit))
		if err != nil {
			return n, err
		}
		c.claimed()
		n += m
	}
	return n, nil
}

// selection says what to claim: the oldest rows, except those of some lanes and topics.
type selection struct {
	lanes  []int64  // not these
	topics []string // not these
	topic  string   // only this one; all if it is empty
	limit  int
}

func (s selection) all() bool { return s.topic == "" && len(s.lanes)+len(s.topics) == 0 }

// take reads rows and takes them in hand.
func (p *pump) take(ctx context.Context, mine uint64, s selection) (n int, err error) {
	begun := time.Now()
	rows, err := p.read(ctx, mine, s)
	if err != nil {
		return 0, fmt.Errorf("outbox: read: %w", err)
	}
	if p.keeper.valid(p.term)&mine != mine { // another relay may have sent the rows meanwhile
		return 0, nil
	}
	if s.all() {
		p.floor.read(rows, s.limit, time.Since(begun))
	}
	bytes := 0
	for i := range rows {
		bytes += rows[i].msg.Size()
		p.admit(rows[i])
	}
	if len(rows) > 0 {
		p.size = (3*p.size + bytes/len(rows)) / 4
		p.floor.active = true
		p.floor.seen = max(p.floor.seen, rows[len(rows)-1].seq)
	}
	return len(rows), nil
}

// admit puts a row behind the other rows of its lane.
func (p *pump) admit(r row) {
	p.held++
	l := p.lanes[r.lane]
	if l == nil {
		l = &laneRows{id: r.lane}
		p.lanes[r.lane] = l
		p.ready = append(p.ready, l)
	}
	l.rows = append(l.rows, r)
}

const claimText = `SELECT seq, lane, created, topic, id, msg_key, type, source, subject, content_type, time, headers, payload FROM {outbox}
WHERE seq > ? AND parked IS NULL`

// read reads rows above the floor, of the buckets in mine.
func (p *pump) read(ctx context.Context, mine uint64, s selection) ([]row, error) {
	o := p.outbox
	text, args := claimText, []any{p.floor.lowest()}
	if mine != ^uint64(0) {
		if o.dialect == Postgres { // it would take the parameter for an int
			text += " AND (?::int8 >> (lane & 63)::int) & 1 = 1"
		} else {
			text += " AND (? >> (lane & 63)) & 1 = 1"
		}
		args = append(args, int64(mine))
	}
	if len(s.lanes) > 0 {
		list, params := o.integers(s.lanes)
		text += " AND lane NOT IN " + list
		args = append(args, params...)
	}
	if len(s.topics) > 0 { // these names are safe in a statement
		text += " AND topic NOT IN ('" + strings.Join(s.topics, "', '") + "')"
	}
	if s.topic != "" {
		text += " AND topic = '" + s.topic + "'"
	}
	text += " ORDER BY seq LIMIT ?"
	args = append(args, s.limit)
	if o.dialect == MySQL { // numbers all of them, and one round trip that way
		for _, a := range args {
			text = strings.Replace(text, "?", fmt.Sprint(a), 1)
		}
		args = nil
	}
	if len(s.topics) > 0 || s.topic != "" || o.dialect == MySQL {
		text = o.compile(text)
	} else {
		text = o.sql(text) // sql keeps it
	}
	found := make([]row, 0, min(s.limit, 256))
	err := each(ctx, p.db, text, func(rows *sql.Rows) error {
		m := &bus.Message{}
		c := row{msg: m}
		var key sql.RawBytes
		var nanos int64
		var headers sql.NullString
		var payload any // a []byte could be nil for an empty payload too
		if err := rows.Scan(&c.seq, &c.lane, &c.created, &c.topic, &m.ID, &key, &m.Type, &m.Source, &m.Subject, &m.ContentType, &nanos, &headers, &payload); err != nil {
			return err
		}
		if m.ID == "" { // a foreign program wrote it; a repeat must have the same id
			m.ID = p.uniqueID(c)
		}
		m.Key = string(key)
		m.Time = time.Unix(0, nanos).UTC()
		sqlmessage.DecodeHeaders(m, headers.String)
		switch b := payload.(type) {
		case []byte:
			if m.Payload = b; b == nil {
				m.Payload = []byte{}
			}
		case string: // a foreign program wrote it
			m.Payload = []byte(b)
		}
		found = append(found, c)
		return nil
	}, args...)
	return found, err
}

// uniqueID is the same at each read of the row, and never equals another row's.
func (p *pump) uniqueID(r row) string { return fmt.Sprintf("%s-%d-%d", p.name, r.seq, r.created) }

// remove deletes the published rows, and releases lanes without a row in hand.
func (p *pump) remove(ctx context.Context) error {
	for len(p.sent) > 0 {
		n := min(len(p.sent), maxSent)
		where, args := p.outbox.rowIDs(p.sent[:n])
		if _, err := p.db.ExecContext(ctx, p.outbox.compile("DELETE FROM {outbox} WHERE "+where), args...); err != nil {
			return fmt.Errorf("outbox: delete sent messages: %w", err)
		}
		p.sent = p.sent[n:]
	}
	p.sent = nil
	for _, l := range p.ended {
		delete(p.lanes, l.id)
	}
	p.ended = p.ended[:0]
	p.using()
	return nil
}
