package router

import (
	"container/heap"
	"math/bits"
)

// The end of a call, from the handler's return until its message is out of flight:
//
//	handle           publishOutputs (outputs.go): what the call emitted, now or with the settlement
//	                 decide (failure.go): the error and the policy give the outcome
//	  |
//	finish           under the lock, by the worker that comes back, or by the watchdog
//	  |-- settle     its key goes on -> settler (settle.go) -> recycle
//	  |-- hold       in this process until it is due -> ready
//	  |-- park       to the broker until it is due (parking.go, parker.go) -> recycle
//	  |-- poison     into the poison queue (poison.go) -> settle, hold, park or abandon
//	  '-- abandon    its key goes on -> recycle; the broker gives the message to the lane's next owner
//
// A task that the parker stores at this moment, because its followers are parked, waits in taskEnded until that is over.

// outcome is the next step of a task whose call has ended. The consumer's method of the same name takes it.
type outcome int8

const (
	settle  outcome = iota // done with: settle it
	hold                   // run it again when it is due
	park                   // the same, but at the broker
	poison                 // put it into the poison queue
	abandon                // let go of it unsettled
)

// finishHandled finishes the tasks that a worker has handled. Called with the lock held, as all of this file.
func (c *consumer) finishHandled(w *worker) {
	for set := w.finished.Swap(0); set != 0; set &= set - 1 {
		i := bits.TrailingZeros32(set)
		c.finish(w.tasks[i])
		w.tasks[i] = nil
	}
}

// finish takes a task to the next step of its outcome.
func (c *consumer) finish(t *task) {
	if t.mustBeParked() {
		c.move(t, taskEnded)
		return
	}
	if t.again != nil {
		t.h, t.again = t.again, nil
	}
	if t.lane.lost() && t.outcome == settle && t.onSettled == nil { // the settler tells that it is stale
		t.outcome = abandon // its result does not count any more
	}
	if t.marked() && (t.outcome == settle || t.outcome == abandon) {
		c.unqueue(t) // it needs no place before its followers any more
		t.place = nil
	}
	c.judgeProbe(t)
	switch t.outcome {
	case settle:
		c.leaveKey(t)
		c.settle(t)
	case park:
		c.park(t)
	case hold:
		if t.lane.gone() && !t.lane.lost() && c.hasHistory(t) {
			t.outcome = park
			c.park(t)
			return
		}
		if t.lane.gone() {
			c.abandon(t)
			return
		}
		if t.entry != nil {
			c.countInFlight(t)
		}
		c.hold(t)
	case poison:
		c.poison(t)
	default:
		c.abandon(t)
	}
}

// finishEnded finishes a task whose call ended while the parker had it.
func (c *consumer) finishEnded(t *task) {
	if t.state == taskEnded && !t.mustBeParked() {
		c.finish(t)
	}
}

// mustBeParked says whether a task whose handler has ended must be parked before it goes on. The
// broker may have parked it, or it is about to be abandoned, and the lane's next owner must not have
// its followers first.
func (t *task) mustBeParked() bool {
	abandoned := t.outcome == abandon || t.lane.gone() && (t.outcome == hold || t.outcome == poison)
	return t.storing == storeCalled || t.marked() && (t.unknown || abandoned)
}

// hold keeps a task in this process until it is due.
func (c *consumer) hold(t *task) {
	c.move(t, taskHeld)
	heap.Push(&c.held, t)
	c.wakeAt(t.due)
}

// abandon lets go of a task unsettled; the broker gives the message to the lane's next owner.
func (c *consumer) abandon(t *task) {
	if t.lane.gone() {
		c.noteAbandoned(t)
	}
	if e := t.place; e != nil && e.inLot() {
		c.unpark(e)
	}
	c.leaveKey(t)
	c.recycle(t)
}

// noteAbandoned notes that a task of a lane that is going is let go unsettled.
func (c *consumer) noteAbandoned(t *task) {
	if !c.inLine(t) {
		return
	}
	if t.lane.abandoned == nil {
		t.lane.abandoned = map[string]bool{}
	}
	t.lane.abandoned[t.key] = true
}

// leaveKey lets the next task of the key go on.
func (c *consumer) leaveKey(t *task) {
	if !t.keyed {
		return
	}
	t.keyed = false
	if next := c.keys.leave(t); next != nil {
		c.makeReady(next)
	} else if line := c.lot.lines[t.key]; line != nil {
		c.lot.wait(line.messages[0])
		c.wakeFetcher()
	}
}

// recycle forgets a task whose message is out of flight.
func (c *consumer) recycle(t *task) {
	c.move(t, taskFree)
	if t.beside {
		c.fetching.wake.Signal()
	}
	if e := t.place; e != nil && e.state == parkedInFlight {
		c.lot.remove(e)
	}
	if t.bars {
		c.unbar(t.key)
	}
	if t.putFails > 0 {
		c.poisoning.trouble.recycled()
		c.notePoisonAway()
	}
	*t = task{next: c.flight.free}
	c.flight.free = t
	if c.hasRoom() {
		c.flight.room.Signal()
	}
}

// unbar notes that one message less of the key is in flight that cannot be parked.
func (c *consumer) unbar(key string) {
	if c.parking.unparkable[key]--; c.parking.unparkable[key] > 0 {
		return
	}
	delete(c.parking.unparkable, key)
	if s := c.stuck.byKey[key]; s != nil && s.tasks[0].storing != storeCalled {
		c.freeStuck(s)
	}
}
