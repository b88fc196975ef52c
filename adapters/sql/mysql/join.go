package mysql

import (
	"context"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus/driver"
)

// settleText has the epoch come back as the last id: it is told whether or not the row has changed,
// and by connections that count changed rows only.
const settleText = `UPDATE {lane} l SET win = ?, pos = ?, epoch = LAST_INSERT_ID(epoch) WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ? AND pos <= ? AND pos >= ?
AND (? = 0 OR (SELECT m.id FROM {of} m WHERE m.topic = ? AND m.shard = l.shard AND m.seq = ?) = ?)
AND (? = 0 OR (SELECT p.chg FROM {parked} p WHERE p.grp = l.grp AND p.shard = l.shard AND p.pos = 0) >= ?)`

// Settle implements sqllog.Store.
func (s *store) Settle(ctx context.Context, x driver.Execer, group int64, member string, p *sqllog.Progress) (bool, error) {
	b := &p.Basis
	var win any
	if len(p.Window) > 0 {
		win = p.Window
	}
	r, err := x.ExecContext(ctx, s.of(b.Topic).settle, win, p.Position, group, p.Shard, member, p.Epoch, p.Position, b.Stored,
		b.Top, b.Topic, b.Top, b.ID, b.Changes, b.Changes)
	if err != nil {
		return false, err
	}
	id, err := r.LastInsertId()
	return id == int64(p.Epoch), err
}

// AppendIn implements sqllog.Store. The statements are not prepared for the next time: the
// connection is somebody else's.
func (s *store) AppendIn(ctx context.Context, x driver.Execer, batch []sqllog.Record) error {
	b := buffers.Get().(*buffer)
	defer b.free()
	for batch = byTopic(batch); len(batch) > 0; {
		n := min(sameTopic(batch), mostRows)
		if _, err := x.ExecContext(ctx, s.inserts.text(n), b.rows(batch[:n])...); err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}
