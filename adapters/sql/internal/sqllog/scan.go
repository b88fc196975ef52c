package sqllog

import (
	"context"
	"math"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
)

// scan implements eventstore.Scan: it merges the lanes by position. A position is emitted when each
// lane has a later event in hand, or has none up to the look that was the last for all lanes that
// had run empty. Those are read again together, in one look: the events of the others were read
// before, below its fence.
type scan struct {
	*events
	reader Reader
	lanes  []scanLane
	share  int // how many events are read of a lane at once
	wake   chan struct{}
	pause  time.Duration
}

// scanLane is one lane. Its buffer is in order.
type scanLane struct {
	next    int64 // the first position that has not been read
	buffer  []eventstore.Recorded
	drained bool // the last look has seen its end
}

// A first look is small, for those who want little; each is twice the one before, up to what all
// lanes may have in hand.
const (
	minShare   = 64
	scanEvents = 8192
	scanBytes  = 8 << 20
	scanPage   = 1000
)

// Scan implements eventstore.Backend.
func (e *events) Scan(after eventstore.Position) eventstore.Scan {
	s := &scan{events: e, reader: e.driver.store.Reader(e.topic.id), lanes: make([]scanLane, e.topic.shards), share: minShare, wake: make(chan struct{}, 1)}
	for i := range s.lanes {
		s.lanes[i].next = int64(max(after, 0)) + 1
	}
	d := e.driver
	d.hub.mu.Lock()
	d.hub.scans[s] = struct{}{}
	d.hub.mu.Unlock()
	return s
}

// Close implements eventstore.Scan.
func (s *scan) Close() {
	h := s.driver.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.scans, s)
}

// Next implements eventstore.Scan.
func (s *scan) Next(ctx context.Context) (found []eventstore.Recorded, err error) {
	err = s.call(ctx, "read", func(ctx context.Context) (err error) {
		if found = s.merge(); len(found) > 0 {
			return nil
		}
		if err = s.fill(ctx); err == nil {
			found = s.merge()
		}
		return err
	})
	if len(found) > 0 {
		s.pause = 0
	}
	return found, err
}

// merge takes the events that can be emitted.
func (s *scan) merge() (found []eventstore.Recorded) {
	for len(found) < scanPage {
		var first *scanLane
		bound := int64(math.MaxInt64) // up to which all empty lanes are known
		for i := range s.lanes {
			switch l := &s.lanes[i]; {
			case len(l.buffer) > 0:
				if first == nil || l.buffer[0].Position < first.buffer[0].Position {
					first = l
				}
			case !l.drained:
				bound = min(bound, l.next-1)
			}
		}
		if first == nil || int64(first.buffer[0].Position) > bound {
			break
		}
		found = append(found, first.buffer[0])
		first.buffer = first.buffer[1:]
	}
	return found
}

// fill reads on in the lanes that have run empty, until each has an event or all that have none
// were seen to the end in one look.
func (s *scan) fill(ctx context.Context) error {
	for i := range s.lanes {
		s.lanes[i].drained = false
	}
	for {
		q := Query{Bytes: scanBytes, Even: true}
		for i := range s.lanes {
			if l := &s.lanes[i]; len(l.buffer) == 0 {
				q.Cursors = append(q.Cursors, Cursor{Shard: int32(i), From: l.next})
			}
		}
		if len(q.Cursors) == 0 {
			return nil
		}
		q.Limit = s.share * len(q.Cursors)
		bounded, cancel := context.WithTimeout(ctx, callTimeout)
		more, err := s.reader.Read(bounded, &q)
		cancel()
		if err != nil {
			return err
		}
		s.share = min(2*s.share, max(scanEvents/len(s.lanes), minShare))
		for _, c := range q.Cursors {
			l := &s.lanes[c.Shard]
			l.next, l.drained = c.From, more != Ready
		}
		for _, r := range q.Records {
			l := &s.lanes[r.Shard]
			l.buffer = append(l.buffer, eventstore.Recorded{Message: r.Message, Stream: r.Message.Key, Version: r.Version, Position: eventstore.Position(r.Seq)})
		}
		if more != Ready || s.canMerge() {
			return nil
		}
	}
}

// canMerge says whether the first event in hand can be emitted.
func (s *scan) canMerge() bool {
	first, bound := int64(math.MaxInt64), int64(math.MaxInt64)
	for i := range s.lanes {
		if l := &s.lanes[i]; len(l.buffer) > 0 {
			first = min(first, int64(l.buffer[0].Position))
		} else {
			bound = min(bound, l.next-1)
		}
	}
	return first <= bound
}

// Wait implements eventstore.Scan. It looks again soon, and then less and less often, or when
// somebody says that there is more.
func (s *scan) Wait(ctx context.Context) error {
	d := s.driver
	if !d.enter() {
		return d.fail("read", s.topic.name, bus.ErrClosed)
	}
	d.mu.Lock()
	d.listen()
	d.mu.Unlock()
	d.calls.Done()
	s.pause = min(max(2*s.pause, minPause), d.config.Poll)
	t := time.NewTimer(s.pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.wake:
		s.pause = 0
	case <-d.closing:
		return d.fail("read", s.topic.name, bus.ErrClosed)
	case <-ctx.Done():
		return d.fail("read", s.topic.name, ctx.Err())
	}
	return nil
}
