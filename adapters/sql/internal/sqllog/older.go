package sqllog

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-go/millrace/bus"
)

// A replica that is promoted, a server that flushes late and crashes, or a backup may lack the last
// confirmed writes. Then numbers are given out again, below those that members have read in the
// meantime. A member keeps its lanes only as long as the database shows all that the member knows
// of it. Each statement that stores progress asks for that, too.

var errOlder = errors.New("the database has come back in an older state: it lacks messages or positions that it had confirmed; the member reads again from the positions that are left")

// memories returns the source's knowledge of the lanes, and the witness.
func (s *Source) memories() (bases map[bus.Lane]Basis, w Witness) {
	s.mu.Lock()
	defer s.mu.Unlock()
	bases = map[bus.Lane]Basis{}
	for _, l := range s.lanes {
		if l != nil {
			bases[l.id] = l.basis(s.topic)
		}
	}
	return bases, s.witness()
}

// isThere looks for the witness.
func (s *Source) isThere(ctx context.Context, w Witness) (bool, error) {
	if w.ID == "" {
		return true, nil
	}
	d := s.driver
	return exists(ctx, d.store.KeeperDB(), d.dialect.LogSQL(s.topic.id, "SELECT 1 FROM {log} WHERE {of} AND shard = ? AND seq = ? AND id = ?"), w.Shard, w.Seq, w.ID)
}

// isOlder says whether the database lacks something. The arguments were read in their order, so
// that rows stored and deleted since are not taken for missing.
func (s *Source) isOlder(bases map[bus.Lane]Basis, w Witness, there bool, v *view) bool {
	for _, row := range v.lanes {
		b, ok := bases[bus.Lane{ID: row.shard, Epoch: row.epoch}]
		if !ok || row.owner != s.member.id {
			continue
		}
		if row.pos < b.Stored || row.changes < b.Changes || row.shard == w.Shard && !there && row.pos <= w.Seq {
			return true
		}
	}
	return false
}

// alarm has the next Receive return an error, for the log and for health.
func (s *Source) alarm(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alarmed = err
	signal(s.arrived)
}

// limit moves a taken lane back to the numbers that the database gives out next, if its position is
// beyond them. This happens after a restore of the tables without their numbering.
func (s *Source) limit(ctx context.Context, taken []claimed) error {
	if len(taken) == 0 {
		return nil
	}
	d := s.driver
	last, err := d.store.Last(ctx, d.store.KeeperDB(), s.topic.id)
	if err != nil {
		return err
	}
	for i := range taken {
		c := &taken[i]
		if c.position <= last+1 {
			continue
		}
		n, err := affected(ctx, d.store.KeeperDB(), d.dialect.SQL("UPDATE {lane} SET pos = ?, win = NULL WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ? AND pos = ?"),
			last+1, s.group, c.shard, s.member.id, c.epoch, c.position)
		if err != nil {
			return err
		}
		if n == 0 {
			return errTaken
		}
		s.alarm(fmt.Errorf("%w: shard %d was finished up to position %d, and the last one that the database has given out is %d", errOlder, c.shard, c.position-1, last))
		c.position, c.window = last+1, nil
	}
	return nil
}
