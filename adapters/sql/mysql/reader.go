package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strconv"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
)

// reader implements sqllog.Reader.
type reader struct {
	store *store
	topic int64
	// active is how many lanes had rows, so that few busy ones are read in large pieces and many in
	// small ones.
	active  int
	decoder sqllog.Decoder
	query   []byte
}

func (s *store) Reader(topic int64) sqllog.Reader { return &reader{store: s, topic: topic} }

// Read implements sqllog.Reader. Rows become visible in the order of their numbers, so whatever
// follows a cursor may be taken. One statement reads all lanes; numbers are all that differs in it,
// so it is sent as a text, in one round trip.
func (r *reader) Read(ctx context.Context, q *sqllog.Query) (sqllog.More, error) {
	lane := max((q.Limit+r.active)/max(r.active, 1), 1)
	if r.active == 0 || q.Even {
		lane = max(q.Limit/len(q.Cursors), 1)
	}
	rows, err := r.store.db.QueryContext(ctx, r.text(q, lane))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var cursor *sqllog.Cursor
	var columns sqllog.Columns
	var texts [len(columns.Texts)]sql.RawBytes
	var payload sql.RawBytes
	active, inLane, bytes, full := 0, 0, 0, false
	missing := q.Witness.ID != ""
	for rows.Next() {
		if len(q.Records) >= q.Limit || bytes >= q.Bytes {
			full = true
			break
		}
		var record sqllog.Record
		fields := append(make([]any, 0, 12), &record.Shard, &record.Seq, &columns.Nanos, &texts[0], &texts[1], &texts[2], &texts[3], &texts[4], &texts[5], &texts[6], &payload)
		if r.topic < 0 {
			fields = append(fields, &record.Version)
		}
		if err := rows.Scan(fields...); err != nil {
			return 0, err
		}
		if missing && record.Shard == q.Witness.Shard && record.Seq == q.Witness.Seq && string(texts[0]) == q.Witness.ID {
			missing = false
			continue
		}
		if missing {
			return 0, sqllog.ErrNoWitness
		}
		if cursor == nil || cursor.Shard != record.Shard {
			i := slices.IndexFunc(q.Cursors, func(c sqllog.Cursor) bool { return c.Shard == record.Shard })
			if i < 0 {
				return 0, fmt.Errorf("shard %d was not asked for", record.Shard)
			}
			cursor = &q.Cursors[i]
			active++
			inLane = 0
		}
		if record.Seq < cursor.From { // taking it would skip those between
			return 0, fmt.Errorf("shard %d: position %d came after %d", record.Shard, record.Seq, cursor.From-1)
		}
		for i := range texts {
			columns.Texts[i] = texts[i]
		}
		columns.Payload = payload
		record.Message = r.decoder.Message(&columns)
		q.Records = append(q.Records, record)
		cursor.From = record.Seq + 1
		bytes += record.Message.Size()
		if inLane++; inLane == lane {
			full = true
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	if missing {
		return 0, sqllog.ErrNoWitness
	}
	r.active = active
	if full {
		return sqllog.Ready, nil
	}
	return sqllog.Drained, nil
}

// text makes the statement.
func (r *reader) text(q *sqllog.Query, lane int) string {
	b, version := r.query[:0], ""
	if r.topic < 0 {
		version = ", version"
	}
	if w := &q.Witness; w.ID != "" { // it comes first
		b = append(b, "(SELECT shard, seq, time, id, msg_key, type, source, subject, content_type, '' AS headers, NULL AS payload"...)
		b = append(b, version...)
		b = append(b, " FROM "...)
		b = append(b, r.store.of(r.topic).name...)
		b = append(b, " WHERE topic = "...)
		b = strconv.AppendInt(b, r.topic, 10)
		b = append(b, " AND shard = "...)
		b = strconv.AppendInt(b, int64(w.Shard), 10)
		b = append(b, " AND seq = "...)
		b = strconv.AppendInt(b, w.Seq, 10)
		b = append(b, ") UNION ALL "...)
	}
	for i, c := range q.Cursors {
		if i > 0 {
			b = append(b, " UNION ALL "...)
		}
		b = append(b, "(SELECT shard, seq, time, id, msg_key, type, source, subject, content_type, headers, payload"...)
		b = append(b, version...)
		b = append(b, " FROM "...)
		b = append(b, r.store.of(r.topic).name...)
		b = append(b, " WHERE topic = "...)
		b = strconv.AppendInt(b, r.topic, 10)
		b = append(b, " AND shard = "...)
		b = strconv.AppendInt(b, int64(c.Shard), 10)
		b = append(b, " AND seq >= "...)
		b = strconv.AppendInt(b, c.From, 10)
		b = append(b, " ORDER BY seq LIMIT "...)
		b = strconv.AppendInt(b, int64(lane), 10)
		b = append(b, ')')
	}
	r.query = b
	return string(b)
}
