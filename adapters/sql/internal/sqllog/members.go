package sqllog

import (
	"bytes"
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// member is a source's membership of its group. Its fields but id are used by the keeper alone.
type member struct {
	id       string
	joined   bool
	renewed  time.Time // when the last successful renewal was sent
	deadline time.Time // when the lease ends by this process's clock
}

// newMember returns a membership with an id that orders after those of earlier members.
func newMember() member { return member{id: bus.NewID()} }

// laneRow is a lane as the database knows it.
type laneRow struct {
	shard int32
	epoch uint64
	owner string // "": nobody
	pos   int64
	// changes is the number of the last change to what is parked.
	changes int64
}

// view is what a group looks like.
type view struct {
	members []string // alive, in the order of their ids
	dead    bool     // there are members whose lease has ended
	lanes   []laneRow
}

// owns says whether the lane's owner is alive.
func (v *view) owns(l laneRow) bool { return l.owner != "" && slices.Contains(v.members, l.owner) }

// look reads the group.
func (d *Driver) look(ctx context.Context, q querier, group int64) (v view, err error) {
	err = collect(ctx, q, func(rows *sql.Rows) error {
		var id string
		var dead bool
		if err := rows.Scan(&id, &dead); err != nil {
			return err
		}
		if dead {
			v.dead = true
		} else {
			v.members = append(v.members, id)
		}
		return nil
	}, d.dialect.SQL("SELECT id, CASE WHEN expires < {now} THEN 1 ELSE 0 END FROM {member} WHERE grp = ? ORDER BY id"), group)
	if err != nil {
		return v, err
	}
	err = collect(ctx, q, func(rows *sql.Rows) error {
		var l laneRow
		var owner sql.NullString
		if err := rows.Scan(&l.shard, &l.epoch, &owner, &l.pos, &l.changes); err != nil {
			return err
		}
		l.owner = owner.String
		v.lanes = append(v.lanes, l)
		return nil
	}, d.dialect.SQL("SELECT l.shard, l.epoch, l.owner, l.pos, COALESCE(p.chg, 0) FROM {lane} l LEFT JOIN {parked} p ON p.grp = l.grp AND p.shard = l.shard AND p.pos = 0 WHERE l.grp = ? ORDER BY l.shard"), group)
	return v, err
}

// renew prolongs a member's lease. false: it has been deleted, because its lease had ended.
func (d *Driver) renew(ctx context.Context, q querier, member string) (bool, error) {
	n, err := affected(ctx, q, d.dialect.SQL("UPDATE {member} SET expires = {now} + ? WHERE id = ?"), d.config.Lease.Microseconds(), member)
	if n > 0 || err != nil {
		return err == nil, err
	}
	// Some databases do not count a row that had this value already.
	return exists(ctx, q, d.dialect.SQL("SELECT 1 FROM {member} WHERE id = ?"), member)
}

// claimed is a lane that a member has become the owner of.
type claimed struct {
	shard    int32
	epoch    uint64
	position int64
	window   []byte
}

// claim joins the group if the member has not, deletes members whose lease has ended, and takes the lanes that choose
// names. alive is false if the member itself has been deleted.
func (d *Driver) claim(ctx context.Context, group int64, m member, choose func(view) []laneRow) (taken []claimed, alive bool, err error) {
	err = d.transact(ctx, func(tx *sql.Tx) error {
		taken, alive = nil, false
		// The row's lock makes this the only transaction that gives out lanes of the group, until it ends.
		if _, err := tx.ExecContext(ctx, d.dialect.SQL("UPDATE {grp} SET moves = moves + 1 WHERE id = ?"), group); err != nil {
			return err
		}
		if !m.joined { // an attempt whose outcome was not known may have inserted the row
			_, err := tx.ExecContext(ctx, d.dialect.SQL("{insert} {member} (id, grp, expires) VALUES (?, ?, {now} + ?) {ignore}"), m.id, group, d.config.Lease.Microseconds())
			if err != nil {
				return err
			}
		}
		if alive, err = d.renew(ctx, tx, m.id); err != nil || !alive {
			return err
		}
		if _, err := tx.ExecContext(ctx, d.dialect.SQL("DELETE FROM {member} WHERE grp = ? AND expires < {now}"), group); err != nil {
			return err
		}
		v, err := d.look(ctx, tx, group)
		if err != nil {
			return err
		}
		for _, l := range choose(v) {
			c, err := d.take(ctx, tx, group, m.id, l)
			if err != nil {
				return err
			}
			taken = append(taken, c)
		}
		return nil
	})
	return taken, alive, err
}

// take makes the member the owner of a lane, and reads its position after that, when nobody else can move it.
func (d *Driver) take(ctx context.Context, tx *sql.Tx, group int64, member string, l laneRow) (claimed, error) {
	c := claimed{shard: l.shard, epoch: l.epoch + 1}
	_, err := tx.ExecContext(ctx, d.dialect.SQL("UPDATE {lane} SET owner = ?, epoch = ? WHERE grp = ? AND shard = ?"), member, c.epoch, group, l.shard)
	if err != nil {
		return c, err
	}
	err = tx.QueryRowContext(ctx, d.dialect.SQL("SELECT pos, win FROM {lane} WHERE grp = ? AND shard = ?"), group, l.shard).Scan(&c.position, &c.window)
	return c, err
}

// release makes lanes free that the member owns under these epochs.
func (d *Driver) release(ctx context.Context, group int64, member string, lanes []laneRow) error {
	return d.transact(ctx, func(tx *sql.Tx) error {
		for _, l := range lanes {
			_, err := tx.ExecContext(ctx, d.dialect.SQL("UPDATE {lane} SET owner = NULL WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ?"), group, l.shard, member, l.epoch)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// depart ends the membership; its lanes are free.
func (s *Source) depart(ctx context.Context) error {
	d := s.driver
	return d.transact(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, d.dialect.SQL("UPDATE {lane} SET owner = NULL WHERE grp = ? AND owner = ?"), s.group, s.member.id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, d.dialect.SQL("DELETE FROM {member} WHERE id = ?"), s.member.id)
		return err
	})
}

// refused says why progress was not stored: of the lanes that the member does not own under these epochs, errTaken; of
// those that it owns, errOlder, unless the progress is there after all.
func (s *Source) refused(ctx context.Context, member string, progress []Progress) (map[int32]error, error) {
	why := map[int32]error{}
	of := map[int32]Progress{}
	for _, p := range progress {
		why[p.Shard], of[p.Shard] = errTaken, p
	}
	err := collect(ctx, s.driver.store.DB(), func(rows *sql.Rows) error {
		var shard int32
		var epoch uint64
		var pos int64
		var win []byte
		if err := rows.Scan(&shard, &epoch, &pos, &win); err != nil {
			return err
		}
		p, ok := of[shard]
		switch {
		case !ok || p.Epoch != epoch:
		case pos > p.Position || pos == p.Position && bytes.Equal(win, p.Window):
			delete(why, shard)
		default:
			why[shard] = errOlder
		}
		return nil
	}, s.driver.dialect.SQL("SELECT shard, epoch, pos, win FROM {lane} WHERE grp = ? AND owner = ?"), s.group, member)
	return why, err
}
