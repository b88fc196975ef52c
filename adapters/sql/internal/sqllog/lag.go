package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/window"
)

const (
	// lagExact is how many messages of a part of the log are counted one by one. Of more, samples
	// are counted.
	lagExact = 400
	// lagSamples is how many samples are taken of the rest, at even distances.
	lagSamples = 16
	// lagSampled is about how many messages one sample has.
	lagSampled = 24
)

// Lag implements driver.Lagger. It counts up to 400 messages of each lane, and estimates the rest
// by samples. So its time does not depend on how far the group is behind.
func (d *Driver) Lag(ctx context.Context, name, group string) (lag bus.Lag, err error) {
	if !d.enter() {
		return lag, d.fail("lag", name, bus.ErrClosed)
	}
	defer d.calls.Done()
	parts, err := d.lagParts(ctx, name, group)
	for i := range parts {
		if err = d.count(ctx, &parts[i], &lag); err != nil {
			break
		}
	}
	if err != nil {
		return bus.Lag{}, d.fail("lag", name, err)
	}
	return lag, nil
}

// lagPart is a part of a topic's log in the order of positions: a lane, or, in a database whose log
// is in the order of positions anyway, the whole topic.
type lagPart struct {
	topic   int64
	inner   string // what the part's rows fulfil
	args    []any  // of inner
	outer   string // what the unfinished ones of them fulfil
	oldest  int64  // the first position that is not finished
	from    int64  // nothing is known of the positions from here on
	pending int64  // unfinished positions below from
}

// lagParts reads where the group is.
func (d *Driver) lagParts(ctx context.Context, name, group string) (parts []lagPart, err error) {
	t, err := d.topics.find(ctx, name)
	if err != nil {
		return nil, err
	}
	id, err := d.findGroup(ctx, d.store.DB(), t, group)
	if err != nil {
		return nil, err
	}
	for _, s := range d.sourcesOf(id) { // messages settled here count at once
		if err := s.commit(ctx); err != nil {
			return nil, err
		}
	}
	err = collect(ctx, d.store.DB(), func(rows *sql.Rows) error {
		var shard int
		var pos int64
		var win []byte
		if err := rows.Scan(&shard, &pos, &win); err != nil {
			return err
		}
		w := window.New(pos)
		if len(win) > 0 {
			w, _ = window.Restore(pos, win) // a damaged one says nothing, as to the lane's owner
		}
		parts = append(parts, lagPart{
			topic: t.id, inner: "shard = ?", args: []any{shard}, outer: "1 = 1",
			oldest: pos, from: w.End(), pending: int64(w.Pending()),
		})
		return nil
	}, d.dialect.SQL("SELECT shard, pos, win FROM {lane} WHERE grp = ?"), id)
	if _, ok := d.store.(Sweeper); ok && len(parts) > 0 {
		parts = []lagPart{wholeTopic(parts)}
	}
	return parts, err
}

// wholeTopic makes one part of all lanes.
func wholeTopic(lanes []lagPart) lagPart {
	all := lagPart{topic: lanes[0].topic, inner: "1 = 1", oldest: lanes[0].oldest, from: lanes[0].from}
	var outer []string
	for _, l := range lanes {
		all.oldest, all.from = min(all.oldest, l.oldest), min(all.from, l.from)
		all.pending += l.pending
		outer = append(outer, fmt.Sprintf("shard = %d AND seq >= %d", l.args[0], l.from))
	}
	all.outer = strings.Join(outer, " OR ")
	return all
}

// count adds a part's messages to lag.
func (d *Driver) count(ctx context.Context, p *lagPart, lag *bus.Lag) error {
	where := "WHERE {of} AND " + p.inner
	first := d.dialect.LogSQL(p.topic, "SELECT COUNT(*), COALESCE(MAX(seq), 0), COALESCE(SUM(CASE WHEN "+p.outer+" THEN 1 ELSE 0 END), 0), COALESCE(MIN(CASE WHEN "+p.outer+" THEN created END), 0)"+
		" FROM (SELECT shard, seq, created FROM {log} "+where+" AND seq >= ? ORDER BY seq LIMIT ?) rows_read")
	var read, last, unfinished, created int64
	limit := int64(lagExact)
	if len(p.args) == 0 {
		limit = lagExact * 20
	}
	if err := d.store.DB().QueryRowContext(ctx, first, append(p.args[:len(p.args):len(p.args)], p.from, limit)...).Scan(&read, &last, &unfinished, &created); err != nil {
		return err
	}
	lag.Messages += p.pending + unfinished
	if read == limit {
		rest, err := d.estimate(ctx, p, where, last, (last-p.from)/read+1)
		if err != nil {
			return err
		}
		lag.Messages += rest
		lag.Estimated = lag.Estimated || rest > 0
	}
	if p.pending+unfinished == 0 {
		return nil
	}
	if p.pending > 0 {
		oldest := d.dialect.LogSQL(p.topic, "SELECT created FROM {log} "+where+" AND seq >= ? ORDER BY seq LIMIT 1")
		err := d.store.DB().QueryRowContext(ctx, oldest, append(p.args[:len(p.args):len(p.args)], p.oldest)...).Scan(&created)
		if errors.Is(err, sql.ErrNoRows) { // finished and deleted meanwhile
			return nil
		}
		if err != nil {
			return err
		}
	}
	if at := time.UnixMicro(created); lag.Oldest.IsZero() || at.Before(lag.Oldest) {
		lag.Oldest = at
	}
	return nil
}

// estimate returns about how many unfinished messages the part has behind a position. There is
// about one message in so many positions.
func (d *Driver) estimate(ctx context.Context, p *lagPart, where string, last, spacing int64) (int64, error) {
	var head int64
	top := d.dialect.LogSQL(p.topic, "SELECT COALESCE(MAX(seq), 0) FROM {log} "+where)
	if err := d.store.DB().QueryRowContext(ctx, top, p.args...).Scan(&head); err != nil {
		return 0, err
	}
	rest := head - last
	stretch := rest/lagSamples + 1 // each sample is in the middle of one
	width := min(spacing*lagSampled, stretch)
	sample := "SELECT COUNT(*) AS n FROM {log} " + where + " AND (" + p.outer + ") AND seq > ? AND seq <= ?"
	var args []any
	for i := range int64(lagSamples) {
		from := last + i*stretch + (stretch-width)/2
		args = append(append(args, p.args...), from, from+width)
	}
	query := "SELECT SUM(n) FROM (" + strings.TrimSuffix(strings.Repeat(sample+" UNION ALL ", lagSamples), " UNION ALL ") + ") samples"
	var n int64
	if err := d.store.DB().QueryRowContext(ctx, d.dialect.LogSQL(p.topic, query), args...).Scan(&n); err != nil {
		return 0, err
	}
	return n * stretch / width, nil
}
