package sqllog

import (
	"bytes"
	"context"
	"database/sql"
	"slices"
	"strings"
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
	// changes is the number of the last change to the parked messages.
	changes int64
}

// view is the state of a group at one look.
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

// join makes m a member. An earlier attempt with an unknown outcome may have done so.
func (d *Driver) join(ctx context.Context, group int64, m member) error {
	_, err := d.store.KeeperDB().ExecContext(ctx, d.dialect.SQL("{insert} {member} (id, grp, expires) VALUES (?, ?, {now} + ?) {ifnew}"), m.id, group, d.config.Lease.Microseconds())
	return err
}

// claim deletes members whose lease has ended, and takes the lanes that choose names. It waits for
// no lock: a process that stands still in a transaction would stop all others. Locked rows are left
// for the next time; busy says that the group's own row is locked. It does not count as a renewal,
// for it may fail where a renewal does not.
func (d *Driver) claim(ctx context.Context, group int64, m string, choose func(view) []laneRow) (taken []claimed, busy bool, err error) {
	err = d.transact(ctx, d.store.KeeperDB(), func(tx *sql.Tx) error {
		taken, busy = nil, false
		// The row's lock makes this the only transaction that gives out lanes of the group, until
		// it ends.
		mine, err := exists(ctx, tx, d.dialect.SQL("SELECT 1 FROM {grp} WHERE id = ?"+d.dialect.SkipLocked), group)
		if err != nil || !mine {
			busy = !mine
			return err
		}
		if err := d.bury(ctx, tx, group); err != nil {
			return err
		}
		v, err := d.look(ctx, tx, group)
		if err != nil || !slices.Contains(v.members, m) { // the next renewal finds it out
			return err
		}
		taken, err = d.take(ctx, tx, group, m, choose(v))
		return err
	})
	return taken, busy, err
}

// bury deletes members whose lease has ended.
func (d *Driver) bury(ctx context.Context, tx *sql.Tx, group int64) error {
	var dead []string
	err := collect(ctx, tx, func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		dead = append(dead, id)
		return err
	}, d.dialect.SQL("SELECT id FROM {member} WHERE grp = ? AND expires < {now} ORDER BY id"+d.dialect.SkipLocked), group)
	for _, id := range dead {
		if err == nil {
			_, err = tx.ExecContext(ctx, d.dialect.SQL("DELETE FROM {member} WHERE id = ? AND expires < {now}"), id)
		}
	}
	return err
}

// take makes the member the owner of lanes, but for those whose rows are locked: a former owner
// settles or parks there, or stands still while it does. It reads their positions when nobody else
// can move them. All lanes take two round trips.
func (d *Driver) take(ctx context.Context, tx *sql.Tx, group int64, member string, lanes []laneRow) (taken []claimed, err error) {
	if len(lanes) == 0 {
		return nil, nil
	}
	epochs := map[int32]uint64{}
	shards := []any{group}
	for _, l := range lanes {
		epochs[l.shard] = l.epoch + 1
		shards = append(shards, l.shard)
	}
	err = collect(ctx, tx, func(rows *sql.Rows) error {
		var c claimed
		err := rows.Scan(&c.shard, &c.position, &c.window)
		c.epoch = epochs[c.shard]
		taken = append(taken, c)
		return err
	}, d.dialect.Compile("SELECT shard, pos, win FROM {lane} WHERE grp = ? AND shard IN ("+marks(len(lanes))+") ORDER BY shard"+d.dialect.SkipLocked), shards...)
	if err != nil || len(taken) == 0 {
		return nil, err
	}
	args := []any{member}
	shards = shards[:1]
	for _, c := range taken {
		args = append(args, c.shard, c.epoch)
		shards = append(shards, c.shard)
	}
	whens := strings.Repeat(" WHEN ? THEN CAST(? AS "+d.dialect.Integer+")", len(taken))
	_, err = tx.ExecContext(ctx, d.dialect.Compile("UPDATE {lane} SET owner = ?, epoch = CASE shard"+whens+" END WHERE grp = ? AND shard IN ("+marks(len(taken))+")"), append(args, shards...)...)
	return taken, err
}

// release ends the ownership of lanes that the member owns under these epochs.
func (d *Driver) release(ctx context.Context, group int64, member string, lanes []laneRow) error {
	return d.transact(ctx, d.store.KeeperDB(), func(tx *sql.Tx) error {
		for _, l := range lanes {
			_, err := tx.ExecContext(ctx, d.dialect.SQL("UPDATE {lane} SET owner = NULL WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ?"), group, l.shard, member, l.epoch)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// depart ends the membership; its lanes have no owner then.
func (s *Source) depart(ctx context.Context) error {
	d := s.driver
	return d.transact(ctx, d.store.KeeperDB(), func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, d.dialect.SQL("UPDATE {lane} SET owner = NULL WHERE grp = ? AND owner = ?"), s.group, s.member.id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, d.dialect.SQL("DELETE FROM {member} WHERE id = ?"), s.member.id)
		return err
	})
}

// refused says why progress was not stored: of the lanes that the member does not own under these
// epochs, errTaken; of those that it owns, errOlder, unless the progress is there after all.
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
