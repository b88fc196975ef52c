package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/stored"
)

// Fetch implements driver.ParkingSource.
func (s *Source) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	s.mu.Lock()
	if s.closed != nil {
		s.mu.Unlock()
		return 0, s.driver.fail("fetch", s.topic.name, bus.ErrClosed)
	}
	byLane := map[int32][]any{}
	for _, t := range tokens {
		if s.owned(t.Lane, t.Epoch) != nil {
			byLane[t.Lane] = append(byLane[t.Lane], t.Position)
		}
	}
	s.mu.Unlock()
	type place struct {
		shard int32
		pos   int64
	}
	docs := map[place][]byte{}
	for shard, positions := range byLane {
		err := collect(ctx, s.driver.store.DB(), func(rows *sql.Rows) error {
			p := place{shard: shard}
			var doc []byte
			err := rows.Scan(&p.pos, &doc)
			docs[p] = doc
			return err
		}, s.driver.dialect.Compile("SELECT pos, doc FROM {parked} WHERE grp = ? AND shard = ? AND doc IS NOT NULL AND pos IN ("+marks(len(positions))+")"),
			append([]any{s.group, shard}, positions...)...)
		if err != nil {
			return 0, s.driver.fail("fetch", s.topic.name, err)
		}
	}
	n := 0
	for _, t := range tokens {
		doc := docs[place{t.Lane, t.Position}]
		if doc == nil || byLane[t.Lane] == nil {
			continue
		}
		d, err := decodeParked(doc, s.topic.name, t)
		if err != nil {
			s.poison(ctx, t, doc, err)
			continue
		}
		dst[n] = d
		n++
	}
	return n, nil
}

// poison moves a parked row that cannot be read to the group's poison queue, so that no other waits
// for it. If that fails, the row stays for the lane's next owner.
func (s *Source) poison(ctx context.Context, t bus.Token, doc []byte, why error) {
	e := unreadable(fmt.Sprintf("%s/%d/%d/parked", s.topic.name, t.Lane, t.Position), doc, why)
	e.Topic, e.Group, e.Lane, e.Position = s.topic.name, s.groupName, t.Lane, t.Position
	store := &poisonStore{driver: s.driver, group: s.groupName}
	if err := store.Put(ctx, e); err != nil {
		s.alarm(err)
		return
	}
	_ = s.Settle(ctx, []bus.Token{t}) // if it is stale, the next owner does the same
}

// marks are n parameters.
func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?, ", n), ", ") }

// removeParked deletes the rows of parked messages that were settled, in lanes that are still this
// member's. Lanes that turn out to belong to somebody else are lost.
func (s *Source) removeParked(ctx context.Context, member string, lanes []*lane) error {
	for _, l := range lanes {
		for {
			s.mu.Lock()
			settled := slices.Clone(l.unparked[:min(len(l.unparked), maxRows)])
			s.mu.Unlock()
			if len(settled) == 0 {
				break
			}
			args := []any{s.group, l.id.ID}
			for _, pos := range settled {
				args = append(args, pos)
			}
			args = append(args, s.group, l.id.ID, member, l.id.Epoch)
			r, err := s.driver.store.DB().ExecContext(ctx, s.driver.dialect.Compile("DELETE FROM {parked} WHERE grp = ? AND shard = ? AND pos IN ("+marks(len(settled))+
				") AND EXISTS (SELECT 1 FROM {lane} WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ?)"), args...)
			if err != nil {
				return err
			}
			if n, err := r.RowsAffected(); err != nil || int(n) < len(settled) { // or they were settled twice
				why, err := s.refused(ctx, member, []Progress{{Shard: l.id.ID, Epoch: l.id.Epoch}})
				if err != nil {
					return err
				}
				if errors.Is(why[l.id.ID], errTaken) {
					s.lose([]*lane{l}, errTaken)
					break
				}
			}
			s.mu.Lock()
			l.unparked = l.unparked[len(settled):]
			s.mu.Unlock()
		}
	}
	return nil
}

// loadLanes reads all that is parked in lanes that were just taken.
func (s *Source) loadLanes(ctx context.Context, lanes []*lane) ([]driver.Parked, error) {
	d := s.driver
	byShard := map[int32]*lane{}
	args := []any{s.group}
	for _, l := range lanes {
		byShard[l.id.ID] = l
		args = append(args, l.id.ID)
	}
	in := " FROM {parked} WHERE grp = ? AND shard IN (" + marks(len(lanes)) + ")"
	found := false
	err := collect(ctx, d.store.KeeperDB(), func(rows *sql.Rows) error {
		var shard int32
		var last int64
		err := rows.Scan(&shard, &last)
		byShard[shard].heard, found = last, true
		return err
	}, d.dialect.Compile("SELECT shard, chg"+in+" AND pos = 0"), args...)
	if err != nil || !found {
		return nil, err
	}
	return s.collectParked(ctx, func(shard int32) bus.Lane { return byShard[shard].id }, d.dialect.Compile(parkedSelect+in+" AND pos > 0 ORDER BY shard, pos"), args...)
}

const parkedSelect = "SELECT shard, pos, due, free, msg_key, CASE WHEN doc IS NULL THEN 1 ELSE 0 END"

func (s *Source) collectParked(ctx context.Context, of func(shard int32) bus.Lane, query string, args ...any) (ps []driver.Parked, err error) {
	err = collect(ctx, s.driver.store.KeeperDB(), func(rows *sql.Rows) error {
		p := driver.Parked{Token: bus.Token{Parked: true}}
		var due int64
		var key []byte
		if err := rows.Scan(&p.Lane, &p.Position, &due, &p.Delayed, &key, &p.Withdrawn); err != nil {
			return err
		}
		p.Epoch, p.Due, p.Key = of(p.Lane).Epoch, stored.Due(due), string(key)
		ps = append(ps, p)
		return nil
	}, query, args...)
	return ps, err
}

// loadChanges reads the messages that others have parked, changed or withdrawn in a lane after a
// number. last is the number up to which it has read.
func (s *Source) loadChanges(ctx context.Context, id bus.Lane, after int64) (ps []driver.Parked, last int64, err error) {
	d := s.driver
	err = d.store.KeeperDB().QueryRowContext(ctx, d.dialect.SQL("SELECT COALESCE(MAX(chg), 0) FROM {parked} WHERE grp = ? AND shard = ? AND pos = 0"), s.group, id.ID).Scan(&last)
	if err != nil || last == 0 {
		return nil, last, err
	}
	ps, err = s.collectParked(ctx, func(int32) bus.Lane { return id },
		d.dialect.SQL(parkedSelect+" FROM {parked} WHERE grp = ? AND shard = ? AND pos > 0 AND chg > ? ORDER BY pos"), s.group, id.ID, after)
	return ps, last, err
}

// forgetWithdrawn deletes the rows of withdrawn messages after the owner has heard of them.
func (s *Source) forgetWithdrawn(ctx context.Context, ps []driver.Parked) error {
	for _, p := range ps {
		if !p.Withdrawn {
			continue
		}
		_, err := s.driver.store.KeeperDB().ExecContext(ctx, s.driver.dialect.SQL("DELETE FROM {parked} WHERE grp = ? AND shard = ? AND pos = ? AND doc IS NULL"), s.group, p.Lane, p.Position)
		if err != nil {
			return err
		}
	}
	return nil
}

// hear tells the router of messages that others have parked, changed or withdrawn in lanes that it
// owns.
func (s *Source) hear(ctx context.Context, v *view) error {
	o, ok := s.observer.(driver.ParkingObserver)
	if !ok {
		return nil
	}
	for _, row := range v.lanes {
		s.mu.Lock()
		l := s.owned(row.shard, row.epoch)
		var after int64
		if l != nil {
			after = l.heard
		}
		s.mu.Unlock()
		if l == nil || row.changes <= after {
			continue
		}
		ps, last, err := s.loadChanges(ctx, l.id, after)
		if err != nil {
			return err
		}
		s.observerMu.Lock()
		s.mu.Lock()
		still := s.owned(row.shard, row.epoch) == l
		l.heard = max(l.heard, last)
		s.mu.Unlock()
		if still && len(ps) > 0 {
			o.Parked(ps)
		}
		s.observerMu.Unlock()
		if err := s.forgetWithdrawn(ctx, ps); err != nil {
			return err
		}
	}
	return nil
}
