package sqllog

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
)

// windowBytes bounds the encoding of a window. Beyond it, a crash repeats messages that were
// finished out of order.
const windowBytes = 4096

// commitShare is the pause before the next commit, in durations of the last commit. It applies if
// the result is longer than the commit interval.
const commitShare = 4

// commitAlways stores settlements, a commit interval after the first of them.
func (s *Source) commitAlways() {
	var took time.Duration
	for b := (backoff.Backoff{}); ; {
		select {
		case <-s.dirty:
		case <-s.closing:
			return // Close commits the rest
		}
		// A database in which commits become slow is given more time between them: while somebody
		// has a long snapshot, each commit that updates a row makes the next ones slower.
		if !sleep(min(max(s.driver.config.Commit, commitShare*took), MaxCommit), s.closing, nil) {
			return
		}
		begun := time.Now()
		ctx, cancel := context.WithTimeout(s.io, callTimeout)
		err := s.commit(ctx)
		cancel()
		took = time.Since(begun)
		if err == nil {
			if b != (backoff.Backoff{}) {
				b = backoff.Backoff{}
				s.report(committing, nil)
			}
			continue
		}
		s.report(committing, err)
		signal(s.dirty)
		if !sleep(b.Next(), s.closing, nil) {
			return
		}
	}
}

// Commit implements bus.Committer.
func (s *Source) Commit(ctx context.Context) error {
	if err := s.commit(ctx); err != nil {
		return s.driver.fail("settle", s.topic.name, err)
	}
	return nil
}

// commit stores the progress of all lanes that have any. Lanes that turn out to belong to somebody else are lost.
func (s *Source) commit(ctx context.Context) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	s.mu.Lock()
	held := slices.Clone(s.lanes)
	for _, l := range s.revoking {
		if l.gone {
			held = append(held, l)
		}
	}
	held = slices.DeleteFunc(held, func(l *lane) bool { return l == nil })
	member := s.member.id
	s.mu.Unlock()
	return s.commitLanes(ctx, member, held)
}

// orphans are lanes that a source has lost with its lease.
type orphans struct {
	member string // under which it had them
	lanes  []*lane
}

// rescue commits the messages settled in lanes before the lanes were lost with the lease. Where
// another member has taken the lane meanwhile, the database refuses the commit. After a success
// there is nothing left to do.
func (s *Source) rescue(ctx context.Context) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	err := s.commitLanes(ctx, s.orphans.member, s.orphans.lanes)
	if err == nil || errors.Is(err, errOlder) {
		s.orphans = orphans{}
		return nil
	}
	return err
}

// commitLanes stores the progress of lanes that the member owns or owned. commitMu is held.
func (s *Source) commitLanes(ctx context.Context, member string, held []*lane) error {
	s.mu.Lock()
	var progress []Progress
	var lanes []*lane
	var versions []uint64
	slices.SortStableFunc(held, func(a, b *lane) int { return cmp.Compare(a.id.ID, b.id.ID) }) // as everybody locks them
	for _, l := range held {
		if l.window.Version() == l.saved {
			continue
		}
		progress = append(progress, Progress{
			Shard: l.id.ID, Epoch: l.id.Epoch, Position: l.window.Position(), Window: l.window.Encode(nil, windowBytes), Basis: l.basis(s.topic),
		})
		lanes, versions = append(lanes, l), append(versions, l.window.Version())
	}
	s.mu.Unlock()
	if err := s.removeParked(ctx, member, held); err != nil {
		return err
	}
	if len(progress) == 0 {
		return nil
	}
	n, err := s.driver.store.Commit(ctx, s.group, member, progress)
	if err != nil {
		return err
	}
	var refused map[int32]error
	if n < len(progress) { // a repeated commit changes nothing, which some databases count as no row
		if refused, err = s.refused(ctx, member, progress); err != nil {
			return err
		}
	}
	s.mu.Lock()
	var taken []*lane
	isOlder := false
	for i, l := range lanes {
		switch why := refused[l.id.ID]; {
		case why == nil:
			l.saved, l.stored = versions[i], progress[i].Position
		case errors.Is(why, errOlder):
			isOlder = true
		default:
			taken = append(taken, l)
		}
	}
	s.mu.Unlock()
	s.lose(taken, errTaken)
	if isOlder {
		signal(s.moved) // the keeper sees the same and begins anew
		return errOlder
	}
	return nil
}
