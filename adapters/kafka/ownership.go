package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/epoch"
)

// committedOffset is the group's commit of a partition.
type committedOffset struct {
	offset   int64
	metadata string
}

// fetched notes the commits of partitions that are about to be assigned, for their metadata. The client calls it just
// before assigned.
func (s *source) fetched(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	committed := map[int32]committedOffset{}
	for _, g := range resp.Groups {
		for _, t := range g.Topics { // one: the client consumes one topic
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 || p.Offset < 0 {
					continue
				}
				c := committedOffset{offset: p.Offset}
				if p.Metadata != nil {
					c.metadata = *p.Metadata
				}
				committed[p.Partition] = c
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetchedAs = committed
	return nil
}

// assigned makes lanes of the partitions that the client begins to fetch when it returns, and says where they begin.
// An error makes the client leave the group and join it anew, so only the end of the session is one; ctx says so.
func (s *source) assigned(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	if err := s.saveStart(ctx); err != nil {
		return nil, err
	}
	partitions := offsets[s.sub.Topic]
	s.mu.Lock()
	committed, begin := s.fetchedAs, s.start
	of := s.driver.topics.incarnation(s.topicID)
	s.mu.Unlock()
	fresh := make([]*lane, 0, len(partitions))
	var ahead []*lane
	var replaced []int32
	for p, o := range partitions {
		l := &lane{Lane: newOwnership(p), leaderEpoch: -1, committed: -1}
		fresh = append(fresh, l)
		c, ok := committed[p]
		switch start, given := begin.positions[p]; {
		case ok && of.replaced(c.metadata):
			replaced = append(replaced, p) // it begins with its oldest message
		case ok:
			l.next, l.committed, l.leaderEpoch = c.offset, c.offset, o.EpochOffset().Epoch
			l.window = restore(c.offset, c.metadata)
			if l.window.End() > c.offset {
				ahead = append(ahead, l)
			}
			if given && c.offset == start {
				l.since = begin.since
			}
		case given:
			l.begin(start)
			l.since = begin.since
		}
	}
	if len(replaced) > 0 {
		s.tell(s.lossError(replaced[0], "%w (%d partitions)", errMadeAgain, len(replaced)))
	}
	s.cut(ctx, ahead)
	if err := s.arrive(ctx, fresh, partitions); err != nil {
		return nil, err
	}
	return offsets, nil
}

// insist calls f until it succeeds or ctx ends, and tells of its errors meanwhile.
func (s *source) insist(ctx context.Context, what string, f func() error) error {
	defer s.wrong(what, nil)
	for b := (backoff.Backoff{}); ; {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			s.wrong(what, err)
		}
		if !b.Wait(ctx) {
			return ctx.Err()
		}
	}
}

// change is a lane that takes the place of another, or comes new.
type change struct{ was, now *lane }

// own makes lanes ours that are still to be. It returns whether any is.
func (s *source) own(arrivals []arrival) bool {
	s.telling.Lock()
	defer s.telling.Unlock()
	var changes []change
	var parked []driver.Parked
	s.mu.Lock()
	for _, a := range arrivals {
		if s.closed || s.coming[a.ID] != a.lane {
			continue
		}
		delete(s.coming, a.ID)
		a.version = a.window.Version()
		changes, parked = append(changes, s.replace(a.lane)), append(parked, a.parked...)
	}
	s.mu.Unlock()
	s.announce(changes, parked)
	return len(changes) > 0
}

// betweenPolls calls f while no poll is under way and none begins: Receive gives nothing of a lane before the observer knows of it.
func (s *source) betweenPolls(f func()) {
	s.mu.Lock()
	s.assigning++
	if s.polling {
		s.stopPoll()
	}
	for s.polling {
		s.change.Wait()
	}
	s.mu.Unlock()
	f()
	s.mu.Lock()
	s.assigning--
	s.change.Broadcast()
	s.mu.Unlock()
}

func newOwnership(lane int32) bus.Lane { return bus.Lane{ID: lane, Epoch: epoch.Next()} }

// replace puts a lane in its place. Called with the lock held.
func (s *source) replace(l *lane) change {
	was := s.lanes[l.ID]
	if was != nil {
		s.drop(was)
	}
	s.lanes[l.ID] = l
	return change{was, l}
}

// rewind ends the ownership of a lane after its log was cut off at an offset that was read before.
// The next ownership begins with the unfinished messages before the cut. Until then settlements
// count, but nothing is committed. Called with the lock held.
func (s *source) rewind(l *lane, to int64) {
	l.leaving, l.void = true, true
	s.unqueue()
	if !s.closed {
		s.beginning.Go(func() { s.takeAgain(l, to) })
	}
}

// takeAgain makes a lane ours anew, unless it goes meanwhile.
func (s *source) takeAgain(was *lane, to int64) {
	l := &lane{Lane: newOwnership(was.ID), leaderEpoch: -1, committed: -1}
	again := []arrival{{lane: l}}
	err := s.insist(s.ctx, fmt.Sprintf("partition %d was cut off, and is not read again yet", l.ID), func() error {
		again[0].err = nil
		s.load(s.ctx, again, laterPatience)
		return again[0].err
	})
	if err != nil {
		return // Close has begun
	}
	s.betweenPolls(func() {
		if s.retake(was, l, to, again[0].parked) {
			// The client has read on. Nothing of it has been queued.
			at := kgo.EpochOffset{Epoch: -1, Offset: l.next}
			s.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{s.sub.Topic: {l.ID: at}})
		}
	})
	s.wakeCommitter()
}

// retake puts a lane in the place of one that is still ours.
func (s *source) retake(was, l *lane, to int64, parked []driver.Parked) bool {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.mu.Lock()
	if s.closed || s.lanes[was.ID] != was {
		s.mu.Unlock()
		return false
	}
	l.window = was.window.Again(to)
	l.next, l.version = l.window.Position(), l.window.Version()
	c := s.replace(l)
	s.mu.Unlock()
	s.announce([]change{c}, parked)
	return true
}

// drop forgets a lane and its polled messages. Called with the lock held.
func (s *source) drop(l *lane) {
	l.leaving = true
	delete(s.lanes, l.ID)
	s.unqueue()
}

// unqueue forgets the polled messages of lanes that are leaving. Called with the lock held.
func (s *source) unqueue() {
	kept := s.queue[:0]
	for _, q := range s.queue {
		if !q.lane.leaving {
			kept = append(kept, q)
		}
	}
	clear(s.queue[len(kept):])
	s.queue = kept
}

// announce tells the observer. Called while nobody else does.
func (s *source) announce(changes []change, parked []driver.Parked) {
	var gone, come []bus.Lane
	for _, c := range changes {
		if c.was != nil {
			gone = append(gone, c.was.Lane)
		}
		come = append(come, c.now.Lane)
	}
	if len(gone) > 0 {
		s.observer.Lost(gone, errRewound)
	}
	if len(come) > 0 {
		s.observer.Assigned(come)
	}
	if len(come) > 0 && len(parked) > 0 {
		s.observer.(driver.ParkingObserver).Parked(parked) // or nothing was loaded
	}
	s.listenTo(changes)
}

var (
	errMadeAgain = errors.New("the topic was deleted and created anew: the group reads it from its beginning")
	errRewound   = errors.New("the partition is read anew from an earlier offset")
	errSession   = errors.New("the membership ended: the session expired, or the group refuses this member")
)

// revoked hands partitions over: it returns when nothing of them is being handled any more and their commits are made.
func (s *source) revoked(_ context.Context, _ *kgo.Client, m map[string][]int32) {
	s.unexpect(m[s.sub.Topic])
	s.mu.Lock()
	if s.closed { // Close commits, and waits for nobody
		s.mu.Unlock()
		return
	}
	lanes := s.those(m)
	for _, l := range lanes {
		l.leaving = true
	}
	s.unqueue()
	s.mu.Unlock()
	if len(lanes) == 0 {
		return
	}
	s.hush(lanes...)
	ctx, cancel := context.WithTimeout(s.ctx, drainTimeout)
	s.observer.Revoking(ctx, ids(lanes))
	cancel()
	ctx, cancel = context.WithTimeout(s.client.Context(), commitTimeout) // until Close leaves the group
	defer cancel()
	err := s.commitAll(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range lanes {
		if s.lanes[l.ID] == l {
			delete(s.lanes, l.ID)
		}
	}
	if err != nil {
		s.report(&bus.Error{Op: "commit", Broker: "kafka", Topic: s.sub.Topic, Err: fmt.Errorf("settled messages of %d lanes that are handed over come again: %w", len(lanes), err)})
	}
}

// lost forgets partitions that are somebody else's already. Nothing may be committed for them any more.
func (s *source) lost(_ context.Context, _ *kgo.Client, m map[string][]int32) {
	s.unexpect(m[s.sub.Topic])
	s.mu.Lock()
	lanes := s.those(m)
	for _, l := range lanes {
		s.drop(l)
	}
	closed := s.closed
	s.mu.Unlock()
	if len(lanes) > 0 && !closed {
		s.hush()
		s.observer.Lost(ids(lanes), errSession)
	}
}

// those returns the lanes that we own among these partitions. Called with the lock held.
func (s *source) those(m map[string][]int32) []*lane {
	var lanes []*lane
	for _, p := range m[s.sub.Topic] {
		if l := s.lanes[p]; l != nil {
			lanes = append(lanes, l)
		}
	}
	return lanes
}

func ids(lanes []*lane) []bus.Lane {
	out := make([]bus.Lane, len(lanes))
	for i, l := range lanes {
		out[i] = l.Lane
	}
	return out
}
