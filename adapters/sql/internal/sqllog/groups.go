package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// group returns the id of a group on a topic. If it is new, it and its lanes are created together.
func (d *Driver) group(ctx context.Context, t topic, name string, start bus.Start) (id int64, err error) {
	if id, err = d.findGroup(ctx, d.store.DB(), t, name); err == nil || !errors.Is(err, bus.ErrNotFound) {
		return id, err
	}
	positions, err := d.startPositions(ctx, t, start)
	if err != nil {
		return 0, err
	}
	err = d.transact(ctx, d.store.DB(), func(tx *sql.Tx) error {
		n, err := affected(ctx, tx, d.dialect.SQL("{insert} {grp} (topic, name, moves) VALUES (?, ?, 0) {ifnew}"), t.id, name)
		if err != nil {
			return err
		}
		if id, err = d.findGroup(ctx, tx, t, name); err != nil || n == 0 { // 0: another was quicker
			return err
		}
		args := make([]any, 0, 3*len(positions))
		for shard, pos := range positions {
			args = append(args, id, shard, pos)
		}
		rows := strings.TrimSuffix(strings.Repeat("(?, ?, ?, 0),", len(positions)), ",")
		_, err = tx.ExecContext(ctx, d.dialect.SQL("INSERT INTO {lane} (grp, shard, pos, epoch) VALUES "+rows), args...)
		return err
	})
	return id, err
}

func (d *Driver) findGroup(ctx context.Context, q querier, t topic, name string) (id int64, err error) {
	err = q.QueryRowContext(ctx, d.dialect.SQL("SELECT id FROM {grp} WHERE topic = ? AND name = ?"), t.id, name).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("group %q: %w", name, bus.ErrNotFound)
	}
	return id, err
}

// startPositions returns where a new group begins in each shard.
func (d *Driver) startPositions(ctx context.Context, t topic, start bus.Start) ([]int64, error) {
	positions := make([]int64, t.shards)
	if start == bus.Earliest {
		return positions, nil
	}
	head, err := d.store.Head(ctx, t.id)
	if err != nil {
		return nil, err
	}
	at, isTime := start.Time()
	for shard := range positions {
		positions[shard] = head + 1
		if !isTime {
			continue
		}
		if positions[shard], err = d.since(ctx, t, shard, at, head); err != nil {
			return nil, err
		}
	}
	return positions, nil
}

// insertSlack is more than the time by which a message may be inserted later than one with a greater position.
const insertSlack = 2 * callTimeout

// since returns the position of the shard's first message that was inserted at the time or later, head+1 if there is
// none. The time grows with the position but for insertSlack, so it narrows the range by halves and then looks at each.
func (d *Driver) since(ctx context.Context, t topic, shard int, at time.Time, head int64) (int64, error) {
	probe := d.dialect.LogSQL(t.id, "SELECT seq, created FROM {log} WHERE {of} AND shard = ? AND seq >= ? AND seq <= ? ORDER BY seq LIMIT 1")
	lo, hi := int64(1), head+1
	for hi-lo > 1000 {
		middle := lo + (hi-lo)/2
		var seq, created int64
		err := d.store.DB().QueryRowContext(ctx, probe, shard, middle, head).Scan(&seq, &created)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			hi = middle
		case err != nil:
			return 0, err
		case created < at.Add(-insertSlack).UnixMicro():
			lo = seq + 1
		default:
			hi = middle
		}
	}
	first := d.dialect.LogSQL(t.id, "SELECT seq FROM {log} WHERE {of} AND shard = ? AND seq >= ? AND seq <= ? AND created >= ? ORDER BY seq LIMIT 1")
	var seq int64
	err := d.store.DB().QueryRowContext(ctx, first, shard, lo, head, at.UnixMicro()).Scan(&seq)
	if errors.Is(err, sql.ErrNoRows) {
		return head + 1, nil
	}
	return seq, err
}

// sourcesOf returns the group's sources of this driver.
func (d *Driver) sourcesOf(group int64) []*Source {
	d.mu.Lock()
	defer d.mu.Unlock()
	var sources []*Source
	for s := range d.sources {
		if s.group == group {
			sources = append(sources, s)
		}
	}
	return sources
}
