package sqlite

import (
	"context"
	"strings"
	"time"
)

// sweepRows is how many messages are looked at, and deleted, at once.
const sweepRows = 1000

// Sweep implements sqllog.Sweeper. The table is in the order of positions and of time. So one pass
// from the bottom up to the first message that is not old does for all shards. It looks on the
// connections that read, because only one connection writes.
func (s *store) Sweep(ctx context.Context, topic int64, limits []int64, age time.Duration, closing <-chan struct{}) error {
	log, _ := s.dialect.Log(topic)
	look := "SELECT seq, shard FROM (SELECT seq, shard, created FROM " + log + " WHERE seq > ? ORDER BY seq LIMIT ?) oldest WHERE created < ? ORDER BY seq"
	remove := "DELETE FROM " + log + " WHERE seq >= ? AND seq <= ? AND seq < CASE shard" + strings.Repeat(" WHEN ? THEN ?", len(limits)) + " ELSE 0 END"
	bounds := make([]any, 0, 2*len(limits)+2)
	for shard, limit := range limits {
		bounds = append(bounds, shard, limit)
	}
	before := time.Now().Add(-age).UnixMicro()
	for cursor := int64(-1 << 63); ; {
		first, last, n, err := s.old(ctx, look, cursor, before, limits)
		if err != nil {
			return err
		}
		if first > 0 {
			if _, err := s.write.ExecContext(ctx, remove, append([]any{first, last}, bounds...)...); err != nil {
				return err
			}
		}
		select {
		case <-closing:
			return nil
		default:
		}
		if n < sweepRows {
			return nil
		}
		cursor = last
	}
}

// old looks at the old messages after cursor, n of them up to last. first is the first that can be
// deleted, 0 if there is none.
func (s *store) old(ctx context.Context, look string, cursor, before int64, limits []int64) (first, last int64, n int, err error) {
	rows, err := s.read.QueryContext(ctx, look, cursor, sweepRows, before)
	if err != nil {
		return 0, 0, 0, err
	}
	defer rows.Close()
	for ; rows.Next(); n++ {
		var shard int
		if err := rows.Scan(&last, &shard); err != nil {
			return 0, 0, 0, err
		}
		if first == 0 && shard < len(limits) && last < limits[shard] {
			first = last
		}
	}
	return first, last, n, rows.Err()
}
