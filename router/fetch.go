package router

import (
	"errors"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// wakeFetcher has due messages fetched, now or when the next is due.
func (c *consumer) wakeFetcher() {
	if c.wakeFetcherAt() {
		c.fetching.wake.Signal()
	}
}

// wakeFetcherAt sets the timer for the next message that is not due yet; it says whether one is due now.
func (c *consumer) wakeFetcherAt() bool {
	due, ok := c.lot.nextDue()
	if !ok || !due.After(time.Now()) {
		return ok
	}
	c.wakeAt(due)
	return false
}

// fetcher brings back the parked messages that are due.
func (c *consumer) fetcher() {
	dst := make([]bus.Delivery, maxFetched)
	var tokens []bus.Token
	for b := (backoff.Backoff{}); ; {
		batch := c.nextToFetch()
		if batch == nil {
			return
		}
		tokens = tokens[:0]
		for _, e := range batch {
			tokens = append(tokens, e.Token)
		}
		n, err := c.fetch(c.intake, tokens, dst)
		if pe, ok := errors.AsType[*bus.PublishError](err); ok {
			batch, err = c.keepBack(batch, pe), nil
		}
		if err == nil {
			if b != (backoff.Backoff{}) {
				b = backoff.Backoff{}
				c.conditions.Note(fetchingFailed, nil)
			}
			c.admitFetched(batch, dst[:n])
			clear(dst)
			continue
		}
		c.refetch(batch)
		if c.intake.Err() == nil {
			c.conditions.Note(fetchingFailed, err)
		}
		b.Wait(c.intake)
	}
}

func (c *consumer) nextToFetch() []*parkedMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.draining {
		if !c.paused && !c.suspended() {
			room := min(maxFetched, c.cfg.inFlight.messages) - c.flight.fetchedMessages
			if c.flight.fetchedBytes >= c.cfg.inFlight.bytes {
				room = 0
			}
			due, kept := c.lot.due(time.Now(), room)
			for _, e := range kept {
				c.goOnWith(e)
			}
			if len(due) > 0 {
				return due
			}
		}
		c.endIdleFetching()
		c.wakeFetcherAt()
		c.fetching.wake.Wait()
	}
	return nil
}

// endIdleFetching ends the conditions of fetches for which no message waits any more: it was
// withdrawn, or its lane has gone. Messages that wait for another try are due by its time.
func (c *consumer) endIdleFetching() {
	if c.paused || c.suspended() {
		return
	}
	if due, ok := c.lot.nextDue(); ok && !due.After(time.Now()) {
		return
	}
	c.conditions.Note(fetchingFailed, nil)
	for _, l := range c.lanes {
		if l.fetches != (backoff.Backoff{}) && !l.fetchFrom.After(time.Now()) {
			l.fetches = backoff.Backoff{}
			c.conditions.Note(l.fetchingFailed(), nil)
		}
	}
}

// goOnWith takes a message that is due and was kept in memory into the scheduler.
func (c *consumer) goOnWith(e *parkedMessage) {
	t := e.kept
	e.kept = nil
	if e.Token.Parked { // the earlier parking is still there
		c.lot.takeOut(e)
	} else {
		c.lot.remove(e)
		t.place = nil
	}
	delayed := t.delayed
	t.delayed, t.keyed = false, t.key != "" && !c.cfg.unordered
	switch {
	case delayed:
		c.enter(t)
	case !t.keyed || c.keys.enter(t):
		c.makeReady(t)
	default:
		c.move(t, taskBlocked)
	}
	c.parking.wake.Signal()
	c.wakeWorkers()
}

// refetch takes back messages that could not be fetched.
func (c *consumer) refetch(batch []*parkedMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range batch {
		c.comeBack(e)
	}
}

// keepBack takes back messages that could not be fetched. A lane's messages wait for a while, and
// hold up no other lane. It returns the rest.
func (c *consumer) keepBack(batch []*parkedMessage, failed *bus.PublishError) []*parkedMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	var fetched []*parkedMessage
	for i, e := range batch {
		if failed.Errs[i] == nil {
			fetched = append(fetched, e)
			continue
		}
		if l := e.lane; !now.Before(l.fetchFrom) { // all that waits in the lane is tried together
			l.fetchFrom = now.Add(l.fetches.Next())
			c.conditions.Note(l.fetchingFailed(), failed.Errs[i])
		}
		if e.Due.Before(e.lane.fetchFrom) {
			e.Due = e.lane.fetchFrom
		}
		c.comeBack(e)
	}
	return fetched
}

// admitFetched takes parked messages into the scheduler that are due.
func (c *consumer) admitFetched(batch []*parkedMessage, fetched []bus.Delivery) {
	unwrapped := unwrap(fetched)
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return
	}
	waits := map[string]bool{} // keys whose line waits for a replay
	for _, e := range batch {
		var d *bus.Delivery
		var err error
		if len(fetched) > 0 && fetched[0].Token == e.Token { // some may be missing; the others are in order
			d, err = &fetched[0], unwrapped.at(0)
			fetched, unwrapped = fetched[1:], unwrapped.from(1)
		}
		if e.state == parkedGone || e.lane.gone() { // or withdrawn
			continue
		}
		if l := e.lane; l.fetches != (backoff.Backoff{}) {
			l.fetches = backoff.Backoff{}
			c.conditions.Note(l.fetchingFailed(), nil)
		}
		if d == nil {
			c.unpark(e)
			continue
		}
		if e.line != nil && waits[e.Key] {
			c.comeBack(e)
			continue
		}
		t := c.fetchedTask(e, d, now)
		if err == nil && c.waitsForReplay(t) {
			waits[e.Key] = true
			c.waitOn(t)
			continue
		}
		c.lot.takeOut(e)
		c.admitTask(t, err)
	}
	c.parking.wake.Signal() // there may be room for more
	c.wakeWorkers()
}

// fetchedTask makes the task of a message that has come back.
func (c *consumer) fetchedTask(e *parkedMessage, d *bus.Delivery, now time.Time) *task {
	c.complete(d, now)
	t := c.newTask(engine.New(e.lane.ctx, c.core.bus, *d), e.lane)
	t.place, t.fetched, t.beside = e, true, true
	t.route = c.table.route(d)
	if d.Failure != nil {
		f := *d.Failure
		t.failure = &f
	}
	return t
}
