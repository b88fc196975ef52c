package router

import (
	"container/heap"
	"time"

	"github.com/millrace-go/millrace/bus/driver"
)

const (
	// parkFrom is the delay from which a message waits at the broker. Shorter ones are not worth
	// the writing.
	parkFrom = time.Second
	// maxFetched bounds the messages in flight that have come back from the broker, beside the
	// in-flight bound. So they need not wait for room while the intake takes all of it.
	maxFetched = 64
	// blockedFor is the delay until a message whose key waits for its replay is tried again by
	// itself.
	blockedFor = 24 * time.Hour
)

// maxParked bounds the messages parked in the lanes that a consumer owns. At the bound, messages
// that should be parked stay in flight, and the intake stops at the in-flight bound. Tests lower
// it.
var maxParked = 200_000

// park sends t to the broker until it is due, and with it the tasks waiting behind it. t is counted
// in its lane's busy until it is stored. Called with the lock held, as all of this file.
func (c *consumer) park(t *task) {
	if t.keyWaits && t.unparkable { // its key cannot wait for its replay, because that needs its place
		t.keyWaits = false
		c.poison(t)
		return
	}
	e := t.place
	if e != nil && e.state == parkedInFlight && e.withdrawn { // nothing is left of it at the broker
		c.abandon(t)
		return
	}
	var behind []*task
	if t.keyed {
		behind = c.keys.detach(t)
		c.keys.leave(t)
		t.keyed = false
	}
	if e != nil && e.state == parkedInFlight && e.changed { // a replay has its place: it goes on from there
		c.lot.insert(e, 0, parkedWaiting)
		c.recycle(t)
		c.await(e)
	} else {
		t.head = true
		c.parkAt(t, 0, t.due)
	}
	c.parkFollowers(behind, 1)
	c.wakeFetcher()
}

// mark parks a message whose handler still runs, because its followers are about to be parked. If
// the handler fails, the message is ahead of its followers. If it succeeds, the message is settled
// there.
func (c *consumer) mark(t *task) {
	if t.place != nil || t.unparkable {
		return // it has come from there
	}
	t.place = &parkedMessage{Parked: driver.Parked{Key: t.key}, lane: t.lane, at: -1}
	c.queueToPark(t)
}

// parkFollowers parks tasks that have not begun, in order, from place i of their line on.
func (c *consumer) parkFollowers(tasks []*task, i int) {
	for _, f := range tasks {
		f.keyed = false
		stored := f.place != nil && f.place.Token.Parked
		switch {
		case stored && (f.lane.gone() || f.place.withdrawn): // the lane's next owner is told of it, or nothing is left of it
			c.recycle(f)
			continue
		case stored && !f.place.Delayed: // it is still where it was
			c.lot.insert(f.place, i, parkedWaiting)
			c.recycle(f)
		default:
			c.parkAt(f, i, time.Time{})
		}
		i++
	}
}

// parkAt sends one task to the broker; i is its place in the line of its key, -1 the end. A task of
// a lane that is gone has no line here. The lane may come back at any time, and its next owner is
// told of all stored messages.
func (c *consumer) parkAt(t *task, i int, due time.Time) {
	if t.place == nil {
		t.place = &parkedMessage{Parked: driver.Parked{Key: t.h.Delivery.Key}, lane: t.lane, came: t.h.Delivery.Position + 1}
	}
	e := t.place
	e.Due, e.Delayed = due, t.delayed
	switch {
	case t.lane.gone() && t.unparkable:
		c.recycle(t)
		return
	case t.lane.gone():
		c.lot.remove(e)
	default:
		c.lot.insert(e, i, parkedAway)
	}
	switch {
	case t.unparkable:
		c.keep(t)
	default:
		c.move(t, taskParking)
		if t.storing == storeNone { // else it was marked, and is on its way
			c.queueToPark(t)
		}
	}
}

// keep has a message that the broker does not take wait in this process. It counts as in flight.
func (c *consumer) keep(t *task) {
	e := t.place
	c.move(t, taskKept)
	e.state, e.kept = parkedWaiting, t
	c.countInFlight(t)
	c.await(e)
	c.wakeFetcher()
}

// isParked says whether the task's key has a line.
func (c *consumer) isParked(t *task) bool {
	return len(c.lot.lines) > 0 && t.keyed && c.lot.lines[t.key] != nil
}

// unpark forgets a parked message. The next of its line goes on.
func (c *consumer) unpark(e *parkedMessage) {
	line := e.line
	c.lot.remove(e)
	if line != nil && len(line.messages) > 0 {
		c.await(line.messages[0])
	}
	if c.lot.n <= maxParked {
		c.parking.wake.Signal()
	}
}

// forgetGone forgets messages that are parked, or wait to be parked, in lanes that are gone. The
// lanes' next owners are told of them, or given them again.
func (c *consumer) forgetGone() {
	c.abandonStuck(func(t *task) bool { return t.lane.gone() })
	kept, first := c.lot.dropGone()
	for _, t := range kept {
		c.recycle(t)
	}
	for _, e := range first {
		c.await(e)
	}
	c.parking.wake.Signal()
	c.cancelling.wake.Signal()
	c.wakeFetcher()
}

// reliefWindow is how long messages in flight are watched before some of them are moved to the
// broker.
const reliefWindow = 20 * time.Millisecond

// relieve makes room when all tasks in flight wait, although workers are idle: for held messages,
// or behind slow ones. The waiting tasks go to the broker. While something is being settled there
// will be room without it. As long as an eighth of the in-flight bound is finished within a window,
// nobody waits long: with quick handlers, keys have followers at any time.
func (c *consumer) relieve() {
	if c.settling.underWay > 0 || len(c.settling.queue) > 0 || !c.canPark || c.draining || c.paused || c.ready.n > 0 || c.crew.idle == 0 && len(c.crew.workers) == c.cfg.workers || c.lot.n+c.cfg.inFlight.messages > maxParked {
		return
	}
	now := time.Now()
	watched := now.Sub(c.relief.from)
	if watched < reliefWindow {
		c.wakeAt(c.relief.from.Add(reliefWindow))
		return
	}
	if watched > time.Second || c.relief.settled-c.relief.settledThen >= uint64(c.cfg.inFlight.messages/8+1) {
		c.relief.from, c.relief.settledThen = now, c.relief.settled
		c.wakeAt(now.Add(reliefWindow))
		return
	}
	held := len(c.held)
	if c.parkHeld(func(t *task) bool { return !t.unparkable }); len(c.held) < held || c.forceStuck() {
		return
	}
	for _, head := range c.keys.slots {
		for ; head != nil; head = head.chain {
			// earlier messages may have been abandoned, and come again behind the parked ones
			if head.lane.gone() {
				continue
			}
			if behind := c.keys.detach(head); len(behind) > 0 {
				c.mark(head)
				for _, t := range behind {
					t.forced = head.unparkable
				}
				c.parkFollowers(behind, 0)
			}
		}
	}
}

// parkHeld parks messages that are held in memory.
func (c *consumer) parkHeld(of func(*task) bool) {
	if !c.canPark {
		return
	}
	var parked []*task
	kept := c.held[:0]
	for _, t := range c.held {
		if of(t) && t.entry == nil && t.storing != storeCalled {
			t.outcome = park
			parked = append(parked, t)
		} else {
			kept = append(kept, t)
		}
	}
	clear(c.held[len(kept):])
	c.held = kept
	heap.Init(&c.held)
	for _, t := range parked {
		c.park(t)
	}
}

// parkTried parks the messages that wait for another try, so that their number of tries and their
// remaining delay go with their lane. Some are held, others are due and have not begun. Messages
// without a try that have not begun are given back.
func (c *consumer) parkTried(of func(*task) bool) {
	c.parkHeld(of)
	tried := func(t *task) bool { return of(t) && c.hasHistory(t) && t.storing != storeCalled }
	due := c.ready.takeOut(tried)
	for _, q := range c.batches {
		due = append(due, q.takeOut(tried)...)
	}
	for _, t := range due {
		t.outcome = park
		c.park(t)
	}
}

// hasHistory says whether only this process knows of a message's tries or delay, and the message
// can be parked with them.
func (c *consumer) hasHistory(t *task) bool {
	return c.canPark && t.entry == nil && !t.unparkable && (t.tries > 0 || t.due.After(time.Now()))
}

// await has the first of a message's line handled when it is due, unless messages of its key are in
// flight.
func (c *consumer) await(e *parkedMessage) {
	if e.line == nil {
		c.lot.wait(e)
	} else if !c.keys.has(e.Key) {
		c.lot.wait(e.line.messages[0])
	}
}

// comeBack has a message wait again that was away, unless it is gone meanwhile.
func (c *consumer) comeBack(e *parkedMessage) {
	if e.state == parkedAway {
		e.state = parkedWaiting
		c.await(e)
	}
}

// Parked implements driver.ParkingObserver.
func (c *consumer) Parked(ps []driver.Parked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range ps {
		l := c.lanes[p.Token.Lane]
		if l == nil || l.id.Epoch != p.Token.Epoch || l.gone() {
			continue
		}
		old := c.lot.stored[placeOf(p.Token)]
		if old != nil && old.lane != l { // of an earlier ownership
			c.unpark(old)
			old = nil
		}
		switch {
		case old == nil && p.Withdrawn:
		case old == nil:
			e := &parkedMessage{Parked: p, lane: l}
			c.lot.add(e)
			c.await(e)
		case old.state == parkedInFlight: // the task that has it in flight goes on; see park
			if old.withdrawn = p.Withdrawn; !p.Withdrawn {
				old.changed, old.Due, old.Delayed = true, p.Due, p.Delayed
			}
		case p.Withdrawn:
			c.unpark(old)
			if t := old.kept; t != nil {
				old.kept = nil
				c.recycle(t)
			}
		default:
			if old.at >= 0 {
				heap.Remove(&c.lot.waiting, old.at)
			}
			old.Due, old.changed = p.Due, true
			c.await(old)
		}
	}
	c.wakeFetcher()
}
