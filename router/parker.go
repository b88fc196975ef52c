package router

import (
	"errors"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/logattr"
)

// stuckTasks could not be parked, and are tried again. For each key only the first task is tried:
// its followers must not get a position before it. Tasks whose order does not matter are alone.
type stuckTasks struct {
	tasks []*task
}

// stuckAtDrain is how often stuck tasks are tried again at a drain.
const stuckAtDrain = 3

// fate is the outcome of a task's parking.
type fate int8

const (
	parkStored  fate = iota // or stale: its lane's owner is told of it, or given it again
	parkLost                // the end has come: it is given to the next owner
	parkRefused             // it can never be parked
	parkAgain               // later, perhaps
	parkUnknown             // the same, but it may be parked already
)

// parker stores messages at the broker, in batches, one call at a time. Messages that the broker
// does not take now are tried again beside the others.
func (c *consumer) parker() {
	for {
		batch, ps := c.nextToPark()
		if batch == nil {
			return
		}
		err := c.source.(driver.ParkingSource).Park(c.ctx, ps)
		fates, failed := c.fatesOf(ps, err)
		c.afterParking(batch, ps, fates, failed)
	}
}

// fatesOf returns each delivery's fate, and one of the errors for which some are tried again.
func (c *consumer) fatesOf(ps []driver.Parking, err error) (fates []fate, failed error) {
	fates = make([]fate, len(ps))
	if err == nil {
		return fates, nil
	}
	each, byDelivery := errors.AsType[*bus.PublishError](err)
	byDelivery = byDelivery && len(each.Errs) == len(ps)
	lost := 0
	for i := range ps {
		if byDelivery {
			err = each.Errs[i]
		}
		switch {
		case err == nil:
		case errors.Is(err, bus.ErrStale):
			c.log.Debug("a message was to be parked, but its lane has another owner; it comes again", "id", logattr.Text(ps[i].ID), "err", err)
		case c.ctx.Err() != nil || errors.Is(err, bus.ErrClosed):
			fates[i] = parkLost
			lost++
		case byDelivery && !bus.IsRetryable(err):
			fates[i] = parkRefused
			c.log.Warn("the broker does not park a message; it waits in this process, and counts as in flight", "id", logattr.Text(ps[i].ID), "until", ps[i].Due, "err", err)
		case byDelivery && bus.IsDefinite(err):
			fates[i], failed = parkAgain, err
		default:
			fates[i], failed = parkUnknown, err
		}
	}
	if lost > 0 {
		c.log.Warn("messages could not be parked; they come again", "messages", lost, "err", err)
	}
	return fates, failed
}

// nextToPark waits for tasks to park. It returns nil at the end.
func (c *consumer) nextToPark() ([]*task, []driver.Parking) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		batch := c.takeStuck(time.Now())
		if len(batch) == 0 {
			batch = c.takeToPark()
		}
		if len(batch) > 0 {
			c.parking.calling = batch
			return batch, parkingsOf(batch)
		}
		if c.parking.ended && (!slices.ContainsFunc(c.stuck.lines, c.canBeTried) || c.stuck.tries >= stuckAtDrain || c.ctx.Err() != nil) {
			return nil, nil
		}
		c.parking.wake.Wait()
	}
}

// parkingsOf returns the parkings that the driver is given for tasks.
func parkingsOf(batch []*task) []driver.Parking {
	ps := make([]driver.Parking, len(batch))
	for i, t := range batch {
		t.setStoring(storeCalled)
		ps[i] = driver.Parking{Delivery: t.h.Delivery, Due: t.place.Due, Delayed: t.place.Delayed}
		ps[i].Token = t.token()
		// the lane's next owner has it at once, and sees that its key waits: this one may not live to
		// write its poison entry
		if t.keyWaits {
			ps[i].Due = time.Now()
			ps[i].Attempt++
		}
		if !t.marked() && t.failure != nil { // its worker may be at it
			f := *t.failure
			ps[i].Failure = &f
		}
	}
	return ps
}

func (c *consumer) queueToPark(t *task) {
	t.setStoring(storeQueued)
	if c.parking.order++; !t.head {
		t.parkOrder = c.parking.order
	}
	c.parking.queue = append(c.parking.queue, t)
	c.parking.wake.Signal()
}

// unqueue takes a task back before it was parked. Called with the lock held, as all that follows.
func (c *consumer) unqueue(t *task) {
	t.setStoring(storeNone)
	if t.stuck != nil {
		c.unstick(t)
	} else if i := slices.Index(c.parking.queue, t); i >= 0 {
		c.parking.queue = slices.Delete(c.parking.queue, i, i+1)
	}
}

// takeToPark takes tasks that may be parked now.
func (c *consumer) takeToPark() []*task {
	queue := c.parking.queue
	c.parking.queue = nil
	full := c.lot.n > maxParked && !c.draining
	var batch, rest []*task
	unproven := map[string]bool{} // keys with a task in the batch that may be refused
	waiting := false
	for _, t := range queue {
		e := t.place
		switch {
		case len(batch) == maxReceive, c.inLine(t) && unproven[t.key]:
			rest = append(rest, t)
		case t.lane.lost() && t.marked():
			t.setStoring(storeNone)
			t.place = nil
			c.finishEnded(t)
		case t.lane.lost(), e.state == parkedGone && !t.lane.gone(), // or it was withdrawn
			t.lane.abandoned[t.key] && c.inLine(t) && !t.marked(): // or it comes again behind one before it
			t.setStoring(storeNone)
			c.abandon(t)
		case full && !t.lane.gone() && !e.Token.Parked:
			waiting = true
			rest = append(rest, t)
		case c.mustWait(t):
			c.stick(t)
		default:
			batch = append(batch, t)
			if !e.Token.Parked && t.size > c.parking.proven {
				unproven[t.key] = true
			}
		}
	}
	c.parking.queue = append(rest, c.parking.queue...)
	if waiting && !c.parking.overfull {
		c.log.Warn("no further message can be parked; messages that should be parked stay in flight until there is room", "parked", c.lot.n)
	}
	if waiting || !full {
		c.parking.overfull = waiting
	}
	return batch
}

// inLine says whether the order of the task matters.
func (c *consumer) inLine(t *task) bool { return t.key != "" && !c.cfg.unordered && !t.delayed }

// mustWait says whether another of the task's key must be parked, or done with, before it.
func (c *consumer) mustWait(t *task) bool {
	return c.inLine(t) && !t.head && (c.stuck.byKey[t.key] != nil || c.parking.unparkable[t.key] > 0 && !t.forced)
}

// takeStuck takes the first task of each line that is due for another try.
func (c *consumer) takeStuck(now time.Time) []*task {
	if len(c.stuck.lines) == 0 || now.Before(c.stuck.due) {
		return nil
	}
	var batch []*task
	var tried, rest []*stuckTasks
	for _, s := range c.stuck.lines {
		if t := s.tasks[0]; len(batch) < maxReceive && c.canBeTried(s) {
			batch = append(batch, t)
			tried = append(tried, s)
		} else {
			rest = append(rest, s)
		}
	}
	c.stuck.lines = append(rest, tried...)
	return batch
}

// canBeTried says whether no message of the key is before the stuck ones that cannot be parked.
func (c *consumer) canBeTried(s *stuckTasks) bool {
	t := s.tasks[0]
	return !c.inLine(t) || c.parking.unparkable[t.key] == 0 || t.head || t.forced
}

// stick has a task tried again later, at its place within its key.
func (c *consumer) stick(t *task) {
	t.setStoring(storeStuck)
	if t.stuck != nil {
		return // it is the first
	}
	s := c.stuck.byKey[t.key]
	if s == nil || !c.inLine(t) {
		s = &stuckTasks{}
		c.stuck.lines = append(c.stuck.lines, s)
		if c.inLine(t) {
			c.stuck.byKey[t.key] = s
		}
	}
	i := len(s.tasks)
	for i > 0 && s.tasks[i-1].parkOrder > t.parkOrder {
		i--
	}
	s.tasks = slices.Insert(s.tasks, i, t)
	t.stuck = s
}

// unstick takes a task out of those that are tried again.
func (c *consumer) unstick(t *task) {
	s := t.stuck
	t.stuck = nil
	if i := slices.Index(s.tasks, t); i >= 0 {
		s.tasks = slices.Delete(s.tasks, i, i+1)
	}
	if len(s.tasks) == 0 {
		c.endStuck(s, t)
	}
}

func (c *consumer) endStuck(s *stuckTasks, of *task) {
	if i := slices.Index(c.stuck.lines, s); i >= 0 {
		c.stuck.lines = slices.Delete(c.stuck.lines, i, i+1)
	}
	if c.stuck.byKey[of.key] == s {
		delete(c.stuck.byKey, of.key)
	}
	if len(c.stuck.lines) == 0 {
		c.conditions.Note(parkingFailed, nil)
	}
}

// freeStuck has tasks that were stuck parked like others again.
func (c *consumer) freeStuck(s *stuckTasks) {
	if len(s.tasks) == 0 {
		return
	}
	c.endStuck(s, s.tasks[0])
	for _, t := range s.tasks {
		t.stuck = nil
		t.setStoring(storeQueued)
	}
	c.parking.queue = append(s.tasks, c.parking.queue...)
	c.parking.wake.Signal()
}

// forceStuck makes room. Some tasks wait only so that they get no position before a message that
// cannot be parked: forceStuck parks them all the same. If the lane goes now, its next owner has
// them in the wrong order. forceStuck says whether there were any.
func (c *consumer) forceStuck() bool {
	var forced []*stuckTasks
	for key := range c.parking.unparkable {
		if s := c.stuck.byKey[key]; s != nil && s.tasks[0].storing != storeCalled {
			forced = append(forced, s)
		}
	}
	for _, s := range forced {
		for _, t := range s.tasks {
			t.forced = true
		}
		c.freeStuck(s)
	}
	return len(forced) > 0
}

// abandonStuck lets go of stuck tasks, unsettled.
func (c *consumer) abandonStuck(of func(*task) bool) {
	for _, s := range slices.Clone(c.stuck.lines) {
		for _, t := range slices.Clone(s.tasks) {
			if !of(t) || t.storing == storeCalled {
				continue
			}
			c.unqueue(t)
			if c.noteAbandoned(t); t.state != taskParking { // it was marked
				t.place = nil
				c.finishEnded(t)
				continue
			}
			c.abandon(t)
		}
	}
}

// afterParking notes the fates of tasks.
func (c *consumer) afterParking(batch []*task, ps []driver.Parking, fates []fate, failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parking.calling = nil
	retried, stuck, left := false, 0, 0
	for i, t := range batch {
		t.setStoring(storeNone)
		retried = retried || t.stuck != nil
		f := fates[i]
		t.unknown = f == parkUnknown || f == parkAgain && t.unknown
		switch {
		case f != parkAgain && f != parkUnknown:
		case t.lane.gone() && t.state == taskParking, t.lane.lost():
			if f = parkLost; !t.lane.lost() {
				left++
			}
			c.noteAbandoned(t)
		default:
			stuck++
			c.stick(t)
			c.finishEnded(t)
			continue
		}
		if s := t.stuck; s != nil {
			if c.unstick(t); f != parkRefused {
				c.freeStuck(s)
			}
		}
		c.afterPark(t, f, ps[i].Token)
	}
	if left > 0 {
		c.log.Warn("messages could not be parked before their lane was handed over; they come again, as after a crash", "messages", left, "err", failed)
	}
	c.delayStuck(retried, stuck, failed)
	c.cancelling.wake.Signal()
	c.wakeFetcher()
	c.wakeWorkers()
}

// delayStuck says when stuck tasks are tried again.
func (c *consumer) delayStuck(retried bool, n int, err error) {
	if len(c.stuck.lines) == 0 {
		c.stuck.backoff = backoff.Backoff{}
	}
	now := time.Now()
	if n == 0 || !retried && now.Before(c.stuck.due) { // a time is set
		return
	}
	c.conditions.Note(parkingFailed, err)
	if c.draining {
		c.stuck.tries++
	}
	c.stuck.due = now.Add(c.stuck.backoff.Next())
	c.wakeAt(c.stuck.due)
}

// wakeParker has stuck tasks tried again, now or when they are due.
func (c *consumer) wakeParker(now time.Time) {
	switch {
	case len(c.stuck.lines) == 0:
	case c.stuck.due.After(now):
		c.wakeAt(c.stuck.due)
	default:
		c.parking.wake.Signal()
	}
}

// afterPark goes on with a task that is parked, or is not and will not be.
func (c *consumer) afterPark(t *task, f fate, token bus.Token) {
	e := t.place
	isStored := f == parkStored && token.Parked
	if isStored {
		c.parking.proven = max(c.parking.proven, t.size)
	}
	if f == parkRefused {
		if t.unparkable = true; c.inLine(t) {
			t.bars = true
			c.parking.unparkable[t.key]++
		}
		if s := c.stuck.byKey[t.key]; s != nil && t.bars && !t.head {
			for _, other := range s.tasks {
				other.forced = other.forced || other.parkOrder < t.parkOrder
			}
		}
	}
	if t.state != taskParking { // it was marked
		if isStored {
			if e.Token = token; !t.lane.gone() {
				e.state = parkedInFlight
				c.lot.place(e)
			}
		} else {
			t.place = nil
		}
		c.finishEnded(t)
		return
	}
	switch {
	case f == parkRefused && t.keyWaits: // as in park
		t.keyWaits = false
		c.unpark(e)
		c.poison(t)
		return
	case f == parkRefused && !t.lane.gone() && e.inLot():
		c.keep(t)
		return
	case isStored:
		e.Token = token // also of a lane that is gone: the poison entry says where it is
	}
	withdrawn := e.state == parkedGone && !t.lane.gone()
	switch {
	case !e.inLot():
	case isStored:
		c.lot.place(e)
	default:
		c.unpark(e)
	}
	if t.keyWaits && isStored && !withdrawn {
		c.poisonAt(t, token)
		return
	}
	c.comeBack(e)
	c.recycle(t)
}
