package sqllog

import (
	"context"
	"database/sql"
	"math"
	"slices"
	"time"
)

// sweepRows is how many messages of a shard are deleted at once.
const sweepRows = 1000

// sweep deletes messages that are too old, again and again. One process at a time does, whichever
// comes first to claim the sweep.
func (d *Driver) sweep() {
	interval := min(max(d.config.Retention/10, time.Second), time.Minute)
	for sleep(interval, d.closing, nil) {
		ctx, cancel := context.WithTimeout(d.io, callTimeout)
		n, err := affected(ctx, d.store.DB(), d.dialect.SQL("UPDATE {meta} SET swept = {now} WHERE swept <= {now} - ?"), (interval * 9 / 10).Microseconds())
		cancel()
		if err == nil && n > 0 {
			err = d.Sweep(d.io) // if it fails, the next one deletes the rest
		}
		d.report(sweeping, err)
	}
}

// Sweep deletes messages older than the retention and below the position of every group, in small
// transactions.
func (d *Driver) Sweep(ctx context.Context) error {
	all, err := d.sweepable(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if err := d.sweepTopic(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// sweepable returns all topics but event stores. It reads the topics before the version, because a
// store's row is made after the tables have the version of stores.
func (d *Driver) sweepable(ctx context.Context) (all []topic, err error) {
	err = collect(ctx, d.store.DB(), func(rows *sql.Rows) error {
		var t topic
		if err := rows.Scan(&t.id, &t.shards); err != nil {
			return err
		}
		all = append(all, t)
		return nil
	}, d.dialect.SQL("SELECT id, shards FROM {topic}"))
	if err != nil {
		return nil, err
	}
	version, _, err := readMeta(ctx, d.dialect, d.store.DB())
	if err != nil || version < versionOfStores {
		return all, err
	}
	stores := map[int64]bool{}
	err = collect(ctx, d.store.DB(), func(rows *sql.Rows) error {
		var id int64
		err := rows.Scan(&id)
		stores[id] = true
		return err
	}, d.dialect.SQL("SELECT topic FROM {store}"))
	return slices.DeleteFunc(all, func(t topic) bool { return stores[t.id] }), err
}

func (d *Driver) sweepTopic(ctx context.Context, t topic) error {
	if sweeper, ok := d.store.(Sweeper); ok {
		limits, err := d.sweepLimits(ctx, t)
		if err != nil {
			return err
		}
		return sweeper.Sweep(ctx, t.id, limits, d.config.Retention, d.closing)
	}
	for {
		limits, err := d.sweepLimits(ctx, t)
		if err != nil {
			return err
		}
		again := false
		for shard, limit := range limits {
			full, err := d.sweepShard(ctx, t, shard, limit)
			if err != nil {
				return err
			}
			again = again || full
		}
		select {
		case <-d.closing:
			return nil
		default:
		}
		if !again {
			return nil
		}
	}
}

// sweepLimits returns, for each shard, the position below which every group has finished. The message at the topic's
// head stays in any case: SQLite continues its numbers from it.
func (d *Driver) sweepLimits(ctx context.Context, t topic) ([]int64, error) {
	head, err := d.store.Head(ctx, t.id)
	if err != nil {
		return nil, err
	}
	limits := make([]int64, t.shards)
	for i := range limits {
		limits[i] = head
	}
	err = collect(ctx, d.store.DB(), func(rows *sql.Rows) error {
		var shard int
		pos := int64(math.MaxInt64)
		if err := rows.Scan(&shard, &pos); err != nil {
			return err
		}
		limits[shard] = min(limits[shard], pos)
		return nil
	}, d.dialect.SQL("SELECT l.shard, MIN(l.pos) FROM {lane} l JOIN {grp} g ON g.id = l.grp WHERE g.topic = ? GROUP BY l.shard"), t.id)
	return limits, err
}

// sweepShard deletes the oldest messages of a shard, up to sweepRows. full: there may be more.
func (d *Driver) sweepShard(ctx context.Context, t topic, shard int, limit int64) (full bool, err error) {
	oldest := d.dialect.LogSQL(t.id, "SELECT MAX(seq), COUNT(*) FROM (SELECT seq, created FROM {log} WHERE {of} AND shard = ? AND seq < ? ORDER BY seq LIMIT ?) oldest WHERE created < {now} - ?")
	var last sql.NullInt64
	var n int
	err = d.store.DB().QueryRowContext(ctx, oldest, shard, limit, sweepRows, d.config.Retention.Microseconds()).Scan(&last, &n)
	if err != nil || n == 0 {
		return false, err
	}
	remove := d.dialect.LogSQL(t.id, "DELETE FROM {log} WHERE {of} AND shard = ? AND seq <= ?")
	_, err = d.store.DB().ExecContext(ctx, remove, shard, last.Int64)
	return n == sweepRows, err
}
