package sqllog

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/window"
)

// settlement is the part of a transactional source's messages that one transaction settles. It
// takes the locks of its lanes before it looks at their windows, and holds them until the
// transaction's outcome is known. So the window it writes holds the committed messages and its own
// messages, and nothing else.
//
// A lane's lock is taken when the transaction has begun. Where the database has one lock for all
// writers, the transaction has that first. The holder of lanes' locks needs no connection, no other
// lock of the process, and no lane's lock out of order.
type settlement struct {
	source *Source
	member string
	lanes  []*settled // in the order of their shards
	failed bool       // writing failed, so it is not committed
	lost   []*lane    // turned out to be another's
}

// settled is the settled part of one lane.
type settled struct {
	lane     *lane
	done     []int64 // positions
	unparked []int64 // positions of parked messages
	window   *window.Window
	version  uint64 // of the lane's own window
	progress Progress
}

var (
	errDoubt     = errors.New("the outcome of the lane's last transaction is not known yet; the driver is looking it up")
	errWithdrawn = fmt.Errorf("%w: the message is no longer parked: %w", bus.ErrStale, bus.ErrNotFound)
	errScattered = errors.New("too many unfinished messages lie between finished ones: the lane's row has no room for them; settling waits for older messages to finish")
)

// isPassing says whether a settlement failed because of what passes by itself in a moment.
func isPassing(err error) bool { return errors.Is(err, errDoubt) || errors.Is(err, errScattered) }

// enter locks the tokens' lanes, and copies their windows with the tokens done. It fails by token
// if some are stale. After an error it holds nothing.
func (s *Source) enter(ctx context.Context, tokens []bus.Token) (*settlement, error) {
	st := &settlement{source: s}
	if err := st.find(tokens); err != nil {
		return nil, err
	}
	for i, l := range st.lanes {
		var err error
		select {
		case l.lane.lock <- struct{}{}:
			continue
		case <-ctx.Done():
			err = ctx.Err()
		case <-s.io.Done():
			err = bus.ErrClosed
		}
		for _, l := range st.lanes[:i] {
			<-l.lane.lock
		}
		return nil, err
	}
	if err := st.copy(tokens); err != nil {
		st.unlock()
		return nil, err
	}
	return st, nil
}

// find finds the tokens' lanes.
func (st *settlement) find(tokens []bus.Token) error {
	s := st.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return bus.ErrClosed
	}
	errs := make([]error, len(tokens))
	for i, t := range tokens {
		l := s.owned(t.Lane, t.Epoch)
		if l == nil {
			errs[i] = bus.ErrStale
		} else if !slices.ContainsFunc(st.lanes, func(o *settled) bool { return o.lane == l }) {
			st.lanes = append(st.lanes, &settled{lane: l})
		}
	}
	slices.SortFunc(st.lanes, func(a, b *settled) int { return cmp.Compare(a.lane.id.ID, b.lane.id.ID) })
	return bus.PerMessage(errs)
}

// copy makes the copies of the windows.
func (st *settlement) copy(tokens []bus.Token) error {
	s := st.source
	s.mu.Lock()
	defer s.mu.Unlock()
	st.member = s.member.id
	byID := make(map[int32]*settled, len(st.lanes))
	for _, l := range st.lanes {
		if l.lane.doubt {
			return errDoubt
		}
		l.window, l.version = l.lane.window.Clone(), l.lane.window.Version()
		byID[l.lane.id.ID] = l
	}
	errs := make([]error, len(tokens))
	for i, t := range tokens {
		l := byID[t.Lane]
		switch {
		case s.owned(t.Lane, t.Epoch) != l.lane:
			errs[i] = bus.ErrStale
		case t.Parked:
			l.unparked = append(l.unparked, t.Position)
		case l.window.Done(t.Position):
			l.done = append(l.done, t.Position)
		default:
			errs[i] = bus.ErrStale // it was parked, or somebody has settled it
		}
	}
	for _, l := range st.lanes {
		l.progress = Progress{
			Shard: l.lane.id.ID, Epoch: l.lane.id.Epoch, Position: l.window.Position(), Window: l.window.Encode(nil, exactWindowBytes),
			Place: l.lane.place, Basis: l.lane.basis(s.topic),
		}
		if !l.isComplete() {
			return errScattered
		}
	}
	return bus.PerMessage(errs)
}

// isComplete says whether the encoding names all that is done.
func (l *settled) isComplete() bool {
	if len(l.done) == 0 {
		return true
	}
	last := slices.Max(l.done)
	if last < l.progress.Position {
		return true
	}
	w, err := window.Restore(l.progress.Position, l.progress.Window)
	return err == nil && !w.Add(last)
}

// write settles within the transaction x. It fails by token if parked messages are not there any more.
func (st *settlement) write(ctx context.Context, x driver.Execer, tokens []bus.Token) (err error) {
	s := st.source
	defer func() { st.failed = err != nil }()
	for _, l := range st.lanes {
		mine, err := s.driver.store.Settle(ctx, x, s.group, st.member, &l.progress)
		if err != nil {
			return err
		}
		if !mine {
			st.lost = append(st.lost, l.lane)
			return fmt.Errorf("shard %d: %w", l.lane.id.ID, bus.ErrStale)
		}
	}
	errs := make([]error, len(tokens))
	for i, t := range tokens {
		if !t.Parked {
			continue
		}
		n, err := affected(ctx, x, s.driver.dialect.SQL("DELETE FROM {parked} WHERE grp = ? AND shard = ? AND pos = ?"), s.group, t.Lane, t.Position)
		if err != nil {
			return err
		}
		if n == 0 {
			errs[i] = errWithdrawn
		}
	}
	return bus.PerMessage(errs)
}

// end is called when the transaction has ended, with the error of the commit or why there was none.
// If the transaction's outcome is not known, end finds it out. It releases the lanes' locks.
// nil: the transaction was committed.
func (st *settlement) end(err error) error {
	switch {
	case err == nil:
		st.adopt()
		st.unlock()
	case st.failed || len(st.lanes) == 0: // the caller does the latter again
		st.unlock()
		st.loseRefused()
	default:
		err = st.findOut(err)
	}
	return err
}

// loseRefused loses the lanes in which the database has refused to settle.
func (st *settlement) loseRefused() {
	s := st.source
	for _, l := range st.lost {
		ctx, cancel := context.WithTimeout(s.io, callTimeout)
		cause := errTaken
		for _, of := range st.lanes {
			if of.lane != l {
				continue
			}
			if why, err := s.refused(ctx, st.member, []Progress{of.progress}); err == nil && errors.Is(why[l.id.ID], errOlder) {
				cause = errOlder
				s.alarm(errOlder)
			}
		}
		cancel()
		s.lose([]*lane{l}, cause)
		signal(s.moved)
	}
}

// unlock releases the locks of the lanes.
func (st *settlement) unlock() {
	for _, l := range st.lanes {
		<-l.lane.lock
	}
}

// adopt brings the lanes' windows to the committed state.
func (st *settlement) adopt() {
	s := st.source
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range st.lanes {
		saved := l.lane.window.Version() == l.version
		for _, pos := range l.done {
			l.lane.window.Done(pos)
		}
		if saved {
			l.lane.saved = l.lane.window.Version()
		}
		l.lane.stored, l.lane.place = l.progress.Position, l.progress.Place
	}
}

// findOut finds out whether a transaction was committed after its commit failed or got no answer.
// Until then nothing else is settled in its lanes. They wait without their locks, because callers
// that hold a connection and wait for a lock could have the last connection.
func (st *settlement) findOut(cause error) error {
	s := st.source
	st.doubt(true)
	st.unlock()
	for b := (backoff.Backoff{}); ; {
		ctx, cancel := context.WithTimeout(s.io, callTimeout)
		committed, known, err := st.lookBehind(ctx)
		cancel()
		switch {
		case err == nil && committed:
			st.adopt()
			st.doubt(false)
			return nil
		case err == nil && known:
			st.doubt(false)
			return cause
		case err == nil, !st.isHeld(), !sleep(b.Next(), s.closing, nil):
			// The lanes go to their next owner, which sees the committed state in them.
			st.giveUp()
			return errors.Join(fmt.Errorf("%w, and the outcome of the transaction is not known: its messages may be settled or not", bus.ErrStale), cause)
		}
	}
}

func (st *settlement) doubt(on bool) {
	st.source.mu.Lock()
	defer st.source.mu.Unlock()
	for _, l := range st.lanes {
		l.lane.doubt = on
	}
}

// isHeld says whether any of the lanes is still this member's, as far as is known here.
func (st *settlement) isHeld() bool {
	st.source.mu.Lock()
	defer st.source.mu.Unlock()
	return slices.ContainsFunc(st.lanes, func(l *settled) bool { return !l.lane.gone })
}

// giveUp loses the lanes. If they are this member's in the database, its keeper takes them anew.
func (st *settlement) giveUp() {
	var lanes []*lane
	for _, l := range st.lanes {
		lanes = append(lanes, l.lane)
	}
	st.source.lose(lanes, errDoubt)
	signal(st.source.moved)
}

// lookBehind reads the committed state, under the lock that the transaction holds until it is over.
// known is false if none of the lanes is this member's any more.
func (st *settlement) lookBehind(ctx context.Context) (committed, known bool, err error) {
	s := st.source
	d := s.driver
	err = d.transact(ctx, d.store.DB(), func(tx *sql.Tx) error {
		committed, known = false, false
		for _, l := range st.lanes {
			var pos int64
			var win []byte
			err := tx.QueryRowContext(ctx, d.dialect.SQL("SELECT pos, win FROM {lane} WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ?"+d.dialect.ForUpdate),
				s.group, l.progress.Shard, st.member, l.progress.Epoch).Scan(&pos, &win)
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			known = true
			if len(l.done) > 0 {
				committed = pos == l.progress.Position && bytes.Equal(win, l.progress.Window)
				return nil
			}
			left, err := exists(ctx, tx, d.dialect.SQL("SELECT 1 FROM {parked} WHERE grp = ? AND shard = ? AND pos = ?"), s.group, l.progress.Shard, l.unparked[0])
			committed = !left
			return err
		}
		return nil
	})
	return committed, known, err
}

// exactWindowBytes bounds the encoding of a window in a transaction. It is the column's capacity,
// and more than a router with the exactly-once guarantee has in flight.
const exactWindowBytes = 8192
