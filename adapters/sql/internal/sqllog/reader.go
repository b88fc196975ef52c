package sqllog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
)

// read reads ahead until the source closes.
func (s *Source) read() {
	reader := s.driver.store.Reader(s.topic.id)
	var b backoff.Backoff
	pause, held := minPause, minHeldPause
	q := Query{}
	var owners []*lane
	average := 1 << 10 // bytes of a message, from the last read
	first := 0         // the lane to read first, so that a bound on the whole read is fair
	for {
		if owners = s.plan(&q, owners[:0], first, average); owners == nil {
			return
		}
		ctx, cancel := context.WithTimeout(s.io, callTimeout)
		more, err := reader.Read(ctx, &q)
		cancel()
		if err == nil { // else the same is read again
			bytes := s.accept(&q, owners)
			if n := len(q.Records); n > 0 {
				average = (average + bytes/n) / 2
				first = int(q.Records[n-1].Shard) + 1
				pause, held = minPause, minHeldPause
			} else if more == Held {
				first++ // one lane's rows may have filled the read
			}
		}
		clear(q.Records)
		switch {
		case errors.Is(err, ErrNoWitness): // it was finished and deleted meanwhile, or the keeper finds out more
			signal(s.moved)
			if !sleep(b.Next(), s.closing, nil) {
				return
			}
		case err != nil:
			s.report(reading, err)
			if !sleep(b.Next(), s.closing, nil) {
				return
			}
		case more == Ready:
			s.readAgain(&b)
		default:
			s.readAgain(&b)
			next := min(pause, s.driver.config.Poll)
			if more == Held {
				next = min(held, s.driver.config.Poll)
				held *= 2
			}
			woken, ok := s.idle(next)
			if !ok {
				return
			}
			if woken {
				pause = minPause
			} else {
				pause = min(2*pause, s.driver.config.Poll)
			}
		}
	}
}

// readAgain notes that a read has succeeded, and begins the back-off anew.
func (s *Source) readAgain(b *backoff.Backoff) {
	if *b != (backoff.Backoff{}) {
		*b = backoff.Backoff{}
		s.report(reading, nil)
	}
}

// minPause is the first pause when nothing is left to read; each is twice the one before, up to the poll interval.
const minPause = 2 * time.Millisecond

// minHeldPause is the first pause while messages are about to become safe to read: as long as a commit takes. Each is twice the one
// before, because a writer may stand still, or be an open transaction of a handler.
const minHeldPause = time.Millisecond

// idle waits for a message to be published, for lanes to change, or for d. It returns false when the source closes.
func (s *Source) idle(d time.Duration) (woken, ok bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.wake:
		return true, true
	case <-s.room:
		return true, true
	case <-t.C:
		return false, true
	case <-s.closing:
		return false, false
	}
}

// plan waits until there is room and a lane, and makes the next query. owners are the lanes of its cursors; nil: the
// source closes.
func (s *Source) plan(q *Query, owners []*lane, first, average int) []*lane {
	for {
		s.mu.Lock()
		q.Cursors, q.Witness = q.Cursors[:0], s.witness()
		if !s.isFull() {
			for i := range s.lanes {
				l := s.lanes[(first+i)%len(s.lanes)]
				if l != nil && l.announced && !l.revoking {
					q.Cursors = append(q.Cursors, Cursor{Shard: l.id.ID, From: l.read})
					owners = append(owners, l)
				}
			}
		}
		q.Bytes = s.aheadBytes - s.ready.Bytes()
		q.Limit = max(min(s.ahead-s.ready.Len(), q.Bytes/average), 1)
		q.Records = q.Records[:0]
		s.mu.Unlock()
		if len(owners) > 0 {
			return owners
		}
		select {
		case <-s.room:
		case <-s.closing:
			return nil
		}
	}
}

// accept queues the messages read of lanes that are still ours, and returns the size of all. The
// lanes' cursors move also if nothing was read: a store may have passed over the messages of other
// lanes.
func (s *Source) accept(q *Query, owners []*lane) (bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := make([]*lane, len(s.lanes))
	for i, c := range q.Cursors {
		// A lane may have been lost or owned anew since the query was made.
		if l := owners[i]; s.lanes[c.Shard] == l && !l.revoking {
			l.read = c.From
			mine[c.Shard] = l
		}
	}
	for _, r := range q.Records {
		size := r.Message.Size()
		bytes += size
		if l := mine[r.Shard]; l != nil {
			if r.Version > 0 {
				markEvent(&r)
			}
			l.top, l.topID = r.Seq, r.Message.ID
			if r.Message.ID == "" { // a foreign program has put it there
				r.Message.ID = fmt.Sprintf("%s/%d/%d", s.topic.name, r.Shard, r.Seq)
			}
			s.ready.Add(arrival{lane: l, msg: r.Message, pos: r.Seq}, size)
			l.ahead++
		}
	}
	if s.ready.Len() > 0 {
		signal(s.arrived)
	}
	return bytes
}
