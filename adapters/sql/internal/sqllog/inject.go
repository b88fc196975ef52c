package sqllog

import (
	"context"
	"database/sql"
	"errors"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/stored"
)

// Inject implements driver.Injector.
func (d *Driver) Inject(ctx context.Context, name, group string, ps []driver.Parking) error {
	if !d.enter() {
		return d.fail("inject", name, bus.ErrClosed)
	}
	defer d.calls.Done()
	t, err := d.topics.find(ctx, name)
	if err != nil {
		return d.fail("inject", name, err)
	}
	id, err := d.findGroup(ctx, d.store.DB(), t, group)
	if err != nil {
		return d.fail("inject", name, err)
	}
	byShard := map[int32][]*driver.Parking{}
	for i := range ps {
		p := &ps[i]
		shard := p.Lane
		if !p.Token.Parked {
			shard = d.topics.shard(t, p.Key)
		}
		byShard[shard] = append(byShard[shard], p)
	}
	err = d.persist(ctx, func(ctx context.Context) error {
		return d.transact(ctx, d.store.DB(), func(tx *sql.Tx) error {
			for shard := range int32(t.shards) { // in order, as everybody locks
				if err := d.injectLane(ctx, tx, id, shard, byShard[shard]); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return d.fail("inject", name, err)
	}
	d.hub.moved(id)
	d.announcer.moved(id)
	return nil
}

func (d *Driver) injectLane(ctx context.Context, tx *sql.Tx, group int64, shard int32, ps []*driver.Parking) error {
	if len(ps) == 0 {
		return nil
	}
	last, err := d.draw(ctx, tx, group, shard, len(ps))
	if err != nil {
		return err
	}
	var rows []parkedRow
	for k, p := range ps {
		row := parkedRow{shard: shard, pos: last - int64(len(ps)-1-k), due: stored.Micros(p.Due)}
		row.change = row.pos
		if p.Delayed {
			row.free = 1
		}
		if !p.Withdraw {
			row.key = []byte(p.Key)
			if row.doc, err = encodeParked(p); err != nil {
				return err
			}
		}
		if !p.Token.Parked {
			rows = append(rows, row)
			continue
		}
		// A message that is gone, or another message in its place, is left out.
		var there []byte
		err := tx.QueryRowContext(ctx, d.dialect.SQL("SELECT doc FROM {parked} WHERE grp = ? AND shard = ? AND pos = ?"+d.dialect.ForUpdate), group, shard, p.Position).Scan(&there)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if there == nil || p.Message == nil || parkedID(there) != p.Message.ID {
			continue
		}
		var doc any
		if !p.Withdraw {
			doc = row.doc
		}
		_, err = tx.ExecContext(ctx, d.dialect.SQL("UPDATE {parked} SET chg = ?, due = ?, free = ?, doc = ? WHERE grp = ? AND shard = ? AND pos = ?"),
			row.change, row.due, row.free, doc, group, shard, p.Position)
		if err != nil {
			return err
		}
	}
	return d.insertParked(ctx, tx, group, rows)
}
