package sqllog

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/window"
)

// revokeTimeout bounds how long the handlers of lanes that will go to another member may go on.
const revokeTimeout = 30 * time.Second

// hungryPause is the time between looks while other members have to give lanes up for this one.
const hungryPause = 100 * time.Millisecond

var (
	errNotRenewed = errors.New("the lease could not be renewed in time")
	errDeleted    = errors.New("the lease had ended before it was renewed")
	errTaken      = errors.New("another member has taken the lane")
)

// keep holds the membership and this member's share of the lanes until the source closes.
func (s *Source) keep() {
	for b := (backoff.Backoff{}); ; {
		pause, err := s.tick()
		s.report(keeping, err)
		if err == nil {
			b = backoff.Backoff{}
		} else {
			pause = b.Next()
		}
		if s.member.joined { // not to miss the end of the lease
			pause = min(pause, max(time.Until(s.member.deadline), time.Millisecond))
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-s.moved:
			t.Stop()
		case <-s.closing:
			t.Stop()
			return
		}
	}
}

// tick looks at the group once and does the work that is due. It returns when to look again.
func (s *Source) tick() (pause time.Duration, err error) {
	lease, now := s.driver.config.Lease, time.Now()
	if s.member.joined && !now.Before(s.member.deadline) {
		s.evicted(errNotRenewed)
	}
	// A third of the lease, so that a renewal that hangs leaves time for the next one.
	ctx, cancel := context.WithTimeout(s.io, min(lease/3, callTimeout))
	defer cancel()
	if !s.member.joined {
		if err := s.enterGroup(ctx); err != nil {
			return 0, err
		}
		return s.claim()
	}
	if now.Sub(s.member.renewed) >= lease/3 {
		if alive, err := s.renew(ctx); err != nil || !alive {
			return 0, err
		}
	}
	v, isOlder, err := s.survey()
	switch {
	case err != nil:
	case isOlder:
		err = s.quit(ctx, errOlder)
	case !slices.Contains(v.members, s.member.id):
		_, err = s.renew(ctx)
	default:
		return s.balance(ctx, &v)
	}
	return 0, err
}

// enterGroup begins the membership.
func (s *Source) enterGroup(ctx context.Context) error {
	d := s.driver
	bounded, cancel := context.WithTimeout(ctx, d.config.Lease/6) // a lane's row may be locked, which must not keep the member out
	defer cancel()
	_ = s.rescue(bounded) // messages that cannot be stored in time are handled again
	sent := time.Now()
	if err := d.join(ctx, s.group, s.member); err != nil {
		return err
	}
	s.orphans = orphans{} // from here on they are claimed
	s.renewed(sent)
	d.hub.moved(s.group) // the others must give it its share
	d.announcer.moved(s.group)
	return nil
}

// quit ends the membership in this process, and tells why. Then it deletes the member, whose share
// would be its own until the lease ends.
func (s *Source) quit(ctx context.Context, cause error) error {
	former := s.member.id
	s.evicted(cause)
	s.alarm(cause)
	_, err := affected(ctx, s.driver.store.KeeperDB(), s.driver.dialect.SQL("DELETE FROM {member} WHERE id = ?"), former)
	return err
}

// balance brings the lanes that the member holds to its share. It returns when to look again.
func (s *Source) balance(ctx context.Context, v *view) (pause time.Duration, err error) {
	h := s.holdings(v)
	s.lose(h.lost, errTaken)
	switch quota := v.quota(s.member.id); {
	case h.owned > quota:
		s.revoke(h.owned - quota)
	case h.owned < quota && len(h.unowned) > 0:
		return s.claim()
	case h.owned < quota:
		return hungryPause, nil
	case len(h.strays) > 0:
		if err := s.driver.release(ctx, s.group, s.member.id, h.strays); err != nil {
			return 0, err
		}
	}
	return min(s.driver.config.Lease/10, time.Second), nil
}

// survey looks at the group and tells the router of messages that others have parked. isOlder: the
// database lacks something that this member knows of.
func (s *Source) survey() (v view, isOlder bool, err error) {
	ctx, end := s.whileRenewing()
	defer end()
	bases, witness := s.memories()
	there, err := s.isThere(ctx, witness)
	if err != nil {
		return v, false, err
	}
	if v, err = s.driver.look(ctx, s.driver.store.KeeperDB(), s.group); err != nil {
		return v, false, err
	}
	if s.isOlder(bases, witness, there, &v) {
		return v, true, nil
	}
	return v, false, s.hear(ctx, &v)
}

// quota is how many lanes the member should have: the same for all, and one more for the oldest if it does not work out.
func (v *view) quota(member string) int {
	n := len(v.members)
	rank := slices.Index(v.members, member)
	if rank < 0 {
		return 0
	}
	quota := len(v.lanes) / n
	if rank < len(v.lanes)%n {
		quota++
	}
	return quota
}

// holdings are a group's lanes from this member's point of view.
type holdings struct {
	owned   int       // held, and not being revoked
	unowned []laneRow // no member's, or strays
	strays  []laneRow // ours in the database only: a claim or a release had no known outcome
	lost    []*lane   // held here only
}

func (s *Source) holdings(v *view) (h holdings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, row := range v.lanes {
		if slices.ContainsFunc(s.revoking, func(l *lane) bool { return l.id.ID == row.shard }) {
			continue
		}
		l := s.lanes[row.shard]
		switch {
		case l != nil && row.owner == s.member.id && row.epoch == l.id.Epoch:
			h.owned++
		case l != nil:
			h.lost = append(h.lost, l)
		case row.owner == s.member.id:
			h.strays = append(h.strays, row)
			h.unowned = append(h.unowned, row)
		case !v.owns(row):
			h.unowned = append(h.unowned, row)
		}
	}
	return h
}

func (s *Source) renew(ctx context.Context) (alive bool, err error) {
	sent := time.Now()
	alive, err = s.driver.renew(ctx, s.driver.store.KeeperDB(), s.member.id)
	switch {
	case err != nil:
	case alive:
		s.renewed(sent)
	default:
		s.evicted(errDeleted)
	}
	return alive, err
}

// renewed notes a renewal. The lease ends here a tenth earlier than in the database. Clocks may run
// at different speeds, and the work at the lease's end takes a moment.
func (s *Source) renewed(sent time.Time) {
	lease := s.driver.config.Lease
	s.mu.Lock()
	defer s.mu.Unlock()
	s.member.joined = true
	s.member.renewed, s.member.deadline = sent, sent.Add(lease-lease/10)
}

// whileRenewing renews the lease until end is called, so that long work meanwhile does not cost the
// lease. The context ends with the lease.
func (s *Source) whileRenewing() (context.Context, func()) {
	ctx, cancel := context.WithTimeout(s.io, callTimeout)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		for b := (backoff.Backoff{}); ; {
			s.mu.Lock()
			m := s.member
			s.mu.Unlock()
			pause := time.Until(m.renewed.Add(s.driver.config.Lease / 3))
			if b != (backoff.Backoff{}) {
				pause = b.Next()
			}
			if !sleep(min(pause, time.Until(m.deadline)), nil, ctx.Done()) || !time.Now().Before(m.deadline) {
				return
			}
			sent := time.Now()
			bounded, stop := context.WithDeadline(ctx, m.deadline)
			alive, err := s.driver.renew(bounded, s.driver.store.KeeperDB(), m.id)
			stop()
			switch {
			case err != nil:
				b.Next()
			case !alive:
				return
			default:
				b = backoff.Backoff{}
				s.renewed(sent)
			}
		}
	}()
	return ctx, func() {
		cancel()
		<-ended
	}
}

// claim takes unowned lanes up to this member's share.
func (s *Source) claim() (pause time.Duration, err error) {
	ctx, end := s.whileRenewing()
	defer end()
	var want int
	taken, busy, err := s.driver.claim(ctx, s.group, s.member.id, func(v view) []laneRow {
		for i := range v.lanes { // an older state of the database has older epochs
			v.lanes[i].epoch = max(v.lanes[i].epoch, s.epochs[v.lanes[i].shard])
		}
		h := s.holdings(&v)
		quota := v.quota(s.member.id)
		want = max(quota-h.owned, 0)
		return h.unowned[:min(len(h.unowned), want)]
	})
	if err != nil {
		return 0, err
	}
	if busy { // somebody else gives out lanes at this moment
		return hungryPause/4 + rand.N(hungryPause/4), nil
	}
	if err := s.assign(ctx, taken); err != nil {
		return 0, err // they count as strays, and are claimed again
	}
	if len(taken) == want {
		return min(s.driver.config.Lease/10, time.Second), nil
	}
	return hungryPause, nil
}

// assign begins to read the lanes that were taken, once the messages parked there are known.
func (s *Source) assign(ctx context.Context, taken []claimed) error {
	if len(taken) == 0 {
		return nil
	}
	if err := s.limit(ctx, taken); err != nil {
		return err
	}
	parking, parks := s.observer.(driver.ParkingObserver)
	var known []driver.Parked
	lanes := make([]*lane, len(taken))
	ids := make([]bus.Lane, len(taken))
	for i, c := range taken {
		// A window that cannot be read, which a newer version may have written, starts at the position.
		w, _ := window.Restore(c.position, c.window)
		ids[i] = bus.Lane{ID: c.shard, Epoch: c.epoch}
		s.epochs[c.shard] = c.epoch
		lanes[i] = &lane{id: ids[i], window: w, read: c.position, stored: c.position, saved: w.Version(), lock: make(chan struct{}, 1)}
	}
	var parked []driver.Parked
	if parks {
		var err error
		if parked, err = s.loadLanes(ctx, lanes); err != nil {
			return err
		}
	}
	for _, p := range parked {
		if !p.Withdrawn {
			known = append(known, p)
		}
	}
	s.observerMu.Lock()
	defer s.observerMu.Unlock()
	s.mu.Lock()
	for _, l := range lanes {
		s.lanes[l.id.ID] = l // its parked messages may be fetched as soon as they are known
	}
	s.mu.Unlock()
	s.observer.Assigned(ids)
	if len(known) > 0 {
		parking.Parked(known)
	}
	s.mu.Lock()
	for _, l := range lanes {
		l.announced = true
	}
	s.mu.Unlock()
	signal(s.room)
	return s.forgetWithdrawn(ctx, parked)
}

// evicted ends the membership, with which everything held is lost. The next tick joins under a new id.
func (s *Source) evicted(cause error) {
	s.mu.Lock()
	former := s.member.id
	s.member = newMember()
	var all []*lane
	for _, l := range s.lanes {
		if l != nil {
			all = append(all, l)
		}
	}
	for _, l := range s.revoking {
		if !slices.Contains(all, l) {
			all = append(all, l)
		}
	}
	s.mu.Unlock()
	s.lose(all, cause)
	if !s.transactional && !errors.Is(cause, errOlder) {
		s.orphans = orphans{member: former, lanes: all}
	}
}

// lose gives lanes up that are somebody else's already.
func (s *Source) lose(lanes []*lane, cause error) {
	if len(lanes) == 0 {
		return
	}
	s.observerMu.Lock() // a lane that is lost and claimed again is reported in this order
	defer s.observerMu.Unlock()
	s.mu.Lock()
	var ids []bus.Lane
	for _, l := range lanes {
		if i := slices.Index(s.revoking, l); i >= 0 { // its observer hears of it by the end of Revoking's context
			s.revoking = slices.Delete(s.revoking, i, i+1)
			s.abandon()
		} else if !l.gone {
			ids = append(ids, l.id)
		}
		s.drop(l)
	}
	s.purge()
	s.mu.Unlock()
	if len(ids) > 0 {
		s.observer.Lost(ids, cause)
	}
}

// drop makes a lane's tokens stale. Called with the lock held.
func (s *Source) drop(l *lane) {
	l.gone = true
	if s.lanes[l.id.ID] == l {
		s.lanes[l.id.ID] = nil
	}
}

// revoke begins to surrender lanes, the last ones, unless that is under way already.
func (s *Source) revoke(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.revoking) > 0 || s.closed != nil {
		return
	}
	var lanes []*lane
	for i := len(s.lanes) - 1; i >= 0 && len(lanes) < n; i-- {
		if l := s.lanes[i]; l != nil {
			l.revoking = true
			lanes = append(lanes, l)
		}
	}
	if len(lanes) == 0 {
		return
	}
	s.purge()
	s.revoking = slices.Clone(lanes)
	ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
	s.abandon = cancel
	member := s.member.id
	s.work.Go(func() {
		defer cancel()
		s.surrender(ctx, member, lanes)
	})
}

// surrender hands lanes over: when their handlers have ended, it commits their settlements and
// gives up their ownership.
func (s *Source) surrender(ctx context.Context, member string, lanes []*lane) {
	ids := make([]bus.Lane, len(lanes))
	rows := make([]laneRow, len(lanes))
	for i, l := range lanes {
		ids[i] = l.id
		rows[i] = laneRow{shard: l.id.ID, epoch: l.id.Epoch}
	}
	slices.SortFunc(rows, func(a, b laneRow) int { return cmp.Compare(a.shard, b.shard) }) // as everybody locks them
	// By the time others may be revoked: these lanes may be lost and owned anew.
	of := func(l *lane) bool { return slices.Contains(lanes, l) }
	s.observer.Revoking(ctx, ids)
	s.mu.Lock()
	for _, l := range lanes {
		l.pass()
		s.drop(l)
	}
	s.mu.Unlock()
	for b := (backoff.Backoff{}); ; {
		bounded, cancel := context.WithTimeout(s.io, callTimeout)
		err := s.commit(bounded)
		if err == nil {
			err = s.driver.release(bounded, s.group, member, rows)
		}
		cancel()
		s.report(handingOver, err)
		if err == nil {
			break
		}
		s.mu.Lock()
		lost := !slices.ContainsFunc(s.revoking, of)
		s.mu.Unlock()
		if lost || !sleep(b.Next(), s.closing, nil) { // Close does it, or there is nothing left to do
			s.report(handingOver, nil)
			return
		}
	}
	s.mu.Lock()
	s.revoking = slices.DeleteFunc(s.revoking, of)
	s.mu.Unlock()
	s.driver.hub.moved(s.group)
	s.driver.announcer.moved(s.group)
}
