package postgres

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
)

// Numbers are drawn before the commit, so rows become visible out of their order. A reader that
// simply reads on after the last row loses those that come late. Therefore each writer that draws
// numbers holds a shared advisory lock on the topic until it has committed. PostgreSQL makes a
// commit visible before it lets go of the locks. A reader looks at the last number drawn (the
// head), then at the holders of the lock, and then at the rows. Rows up to the head are complete
// once each of these holders has gone; later writers get a greater number. Other transactions,
// however long, are of no concern.

// fence knows up to where the rows of one topic are complete.
type fence struct {
	safe    int64
	pending []sighting
	head    int64 // the newest that was seen
	started int64 // when the server was started, in microseconds since 1970
}

// check notes a head and when its server was started. It returns false for another server, or one
// that has come back in an older state. Nothing is known of it: rows that were complete may come
// again with other contents.
func (f *fence) check(head, started int64) (same bool) {
	same = f.started == 0 || f.started == started && f.head <= head
	if !same {
		*f = fence{}
	}
	f.head, f.started = head, started
	return same
}

// sighting is a head, and the holders of the lock after the head was seen.
type sighting struct {
	head    int64
	holders []string
}

// maxSightings bounds pending. While a writer hangs, newer sightings replace the last one.
const maxSightings = 16

// see takes a new head and the holders that were seen after it, and moves safe.
func (f *fence) see(head int64, holders []string) {
	// A prepared transaction has another name than it had before, so it could be any of the earlier
	// holders.
	prepared := slices.ContainsFunc(holders, func(h string) bool { return strings.HasPrefix(h, "-1/") })
	kept := f.pending[:0]
	for _, s := range f.pending {
		if prepared || slices.ContainsFunc(s.holders, func(h string) bool { return slices.Contains(holders, h) }) {
			kept = append(kept, s)
		} else {
			f.safe = max(f.safe, s.head)
		}
	}
	f.pending = kept
	switch {
	case len(holders) == 0:
		f.safe = max(f.safe, head)
	case len(f.pending) == maxSightings:
		f.pending[maxSightings-1] = sighting{head, holders}
	default:
		f.pending = append(f.pending, sighting{head, holders})
	}
}

// reader implements sqllog.Reader.
type reader struct {
	store *store
	topic int64
	fence fence
	// behind: the last read ended far below the head, so the head need not be looked at.
	behind bool
	// active is how many lanes had rows, so that few busy ones are read in large pieces and many in
	// small ones.
	active int

	decoder sqllog.Decoder
	buffers [2][]byte
}

func (s *store) Reader(topic int64) sqllog.Reader { return &reader{store: s, topic: topic} }

// Read implements sqllog.Reader, in one round trip.
func (r *reader) Read(ctx context.Context, q *sqllog.Query) (sqllog.More, error) {
	more, err := r.read(ctx, q)
	if r.store.lacksPrepared(err) { // nothing of it has been read
		more, err = r.read(ctx, q)
	}
	return more, err
}

func (r *reader) read(ctx context.Context, q *sqllog.Query) (sqllog.More, error) {
	s := r.store
	conn, err := s.acquire(ctx, &s.head, &s.holders)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	lane := max((q.Limit+r.active)/max(r.active, 1), 1)
	if r.active == 0 || q.Even {
		lane = max(q.Limit/len(q.Cursors), 1)
	}
	p := conn.Conn.Conn().PgConn().StartPipeline(ctx)
	look := !r.behind
	conn.send(p, &s.head)
	if look {
		conn.send(p, &s.holders, raw8(int64(s.class)), raw8(r.topic))
	}
	conn.send(p, &s.of(r.topic).read, raw4(int32(r.topic)), r.shards(q.Cursors), r.positions(q.Cursors), raw8(int64(lane)), raw8(int64(q.Limit)))
	if w := &q.Witness; w.ID != "" { // by a server that was asked for the rows before
		conn.send(p, &s.of(r.topic).witness, raw4(int32(r.topic)), raw2(int16(w.Shard)), raw8(w.Seq), []byte(w.ID))
	}
	if err := p.Flush(); err != nil {
		return 0, errors.Join(err, p.Close())
	}
	same, err := r.look(p, look)
	if err != nil {
		return 0, errors.Join(err, p.Close())
	}
	var more sqllog.More
	err = result(p, func(rows *pgconn.ResultReader) (err error) {
		more, err = r.rows(rows, q, lane)
		return err
	})
	if err == nil && q.Witness.ID != "" {
		err = result(p, func(rows *pgconn.ResultReader) error {
			if !rows.NextRow() {
				return sqllog.ErrNoWitness
			}
			return nil
		})
	}
	if cerr := p.Close(); err == nil {
		err = cerr
	}
	if err == nil && !look && !same {
		r.behind, err = false, errRestarted
	}
	return more, err
}

var errRestarted = errors.New("the database has been restarted: looking again")

// look reads the head and, with holders, the holders of the lock. It returns false if the server
// has changed.
func (r *reader) look(p *pgconn.Pipeline, withHolders bool) (same bool, err error) {
	var head, started int64
	err = result(p, func(rows *pgconn.ResultReader) error {
		for rows.NextRow() {
			head, started = int64(binary.BigEndian.Uint64(rows.Values()[0])), int64(binary.BigEndian.Uint64(rows.Values()[1]))
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	if same = r.fence.check(head, started); !withHolders {
		return same, nil
	}
	var holders []string
	err = result(p, func(rows *pgconn.ResultReader) error {
		for rows.NextRow() {
			holders = append(holders, string(rows.Values()[0]))
		}
		return nil
	})
	if err == nil {
		r.fence.see(head, holders)
	}
	return same, err
}

// result reads one statement's rows, and the end of its transaction.
func result(p *pgconn.Pipeline, read func(*pgconn.ResultReader) error) error {
	got, err := p.GetResults()
	if err != nil {
		return err
	}
	rows, ok := got.(*pgconn.ResultReader)
	if !ok {
		return fmt.Errorf("unexpected answer %T", got)
	}
	err = read(rows)
	if _, cerr := rows.Close(); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	_, err = p.GetResults() // the end of the transaction
	return err
}

// rows takes the rows up to the fence.
func (r *reader) rows(rows *pgconn.ResultReader, q *sqllog.Query, lane int) (sqllog.More, error) {
	var n, inLane, bytes int
	var held, full bool
	active, shard := 0, int32(-1)
	var cursor *sqllog.Cursor
	for rows.NextRow() {
		v := rows.Values()
		n++
		if s := int32(int16(binary.BigEndian.Uint16(v[0]))); s != shard {
			shard, inLane = s, 0
			active++
			i := slices.IndexFunc(q.Cursors, func(c sqllog.Cursor) bool { return c.Shard == shard })
			if i < 0 {
				return 0, fmt.Errorf("shard %d was not asked for", shard)
			}
			cursor = &q.Cursors[i]
		}
		if inLane++; inLane == lane {
			full = true
		}
		seq := int64(binary.BigEndian.Uint64(v[1]))
		if seq > r.fence.safe {
			held = true
			continue
		}
		if bytes >= q.Bytes {
			full = true
			continue // the rest is on its way here already; it is not kept
		}
		m := r.decoder.Message(&sqllog.Columns{Nanos: int64(binary.BigEndian.Uint64(v[2])), Texts: [7][]byte(v[3:10]), Payload: v[10]})
		record := sqllog.Record{Shard: shard, Seq: seq, Message: m}
		if len(v) > 11 {
			record.Version = int64(binary.BigEndian.Uint64(v[11]))
		}
		q.Records = append(q.Records, record)
		cursor.From = seq + 1
		bytes += m.Size()
	}
	r.active = active
	full = full || n == q.Limit
	r.behind = full && !held
	switch {
	case full && len(q.Records) > 0:
		return sqllog.Ready, nil
	case held:
		return sqllog.Held, nil
	}
	return sqllog.Drained, nil
}

func raw2(v int16) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }
func raw4(v int32) []byte { return binary.BigEndian.AppendUint32(nil, uint32(v)) }
func raw8(v int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }

func (r *reader) shards(cursors []sqllog.Cursor) []byte {
	b := array(r.buffers[0][:0], oidInt2, len(cursors))
	for _, c := range cursors {
		b = int2b(b, int16(c.Shard))
	}
	r.buffers[0] = b
	return b
}

func (r *reader) positions(cursors []sqllog.Cursor) []byte {
	b := array(r.buffers[1][:0], oidInt8, len(cursors))
	for _, c := range cursors {
		b = int8b(b, c.From)
	}
	r.buffers[1] = b
	return b
}

// Head implements sqllog.Store: it waits for the holders of the topic's lock.
func (s *store) Head(ctx context.Context, topic int64) (int64, error) {
	r := &reader{store: s, topic: topic}
	var first int64
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		head, err := r.lookOnce(ctx)
		if s.lacksPrepared(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if first == 0 {
			first = head
		}
		if r.fence.safe >= first {
			return r.fence.safe, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Last implements sqllog.Store.
func (s *store) Last(ctx context.Context, db *sql.DB, _ int64) (last int64, err error) {
	err = db.QueryRowContext(ctx, s.dialect.SQL("SELECT last_value FROM {log_seq}")).Scan(&last)
	return last, err
}

func (r *reader) lookOnce(ctx context.Context) (head int64, err error) {
	s := r.store
	conn, err := s.acquire(ctx, &s.head, &s.holders)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	p := conn.Conn.Conn().PgConn().StartPipeline(ctx)
	conn.send(p, &s.head)
	conn.send(p, &s.holders, raw8(int64(s.class)), raw8(r.topic))
	if err := p.Flush(); err != nil {
		return 0, errors.Join(err, p.Close())
	}
	_, err = r.look(p, true)
	if cerr := p.Close(); err == nil {
		err = cerr
	}
	if n := len(r.fence.pending); n > 0 {
		return r.fence.pending[n-1].head, err
	}
	return r.fence.safe, err
}
