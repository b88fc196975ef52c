package router

import "time"

// suspension is the time in which no handler is called, because a handler said that something it
// needs is unavailable ([bus.Unavailable]). When it is over, one call is let through. The rest
// follow if that call finds things in order.
type suspension struct {
	until time.Time // zero: there is none
	probe *task     // the call that was let through, if it has not ended
	why   error     // the handler's word
}

// suspended says whether handlers are not called, but for a probe. Called with the lock held, as all of this file.
func (c *consumer) suspended() bool { return !c.pausing.until.IsZero() }

// probeDue says whether a call may be begun: any, or the probe.
func (c *consumer) probeDue() bool {
	return !c.suspended() || (c.pausing.probe == nil && !time.Now().Before(c.pausing.until))
}

// takeProbe gives w the probe, if it is due.
func (c *consumer) takeProbe(w *worker) bool {
	if !c.probeDue() {
		return false
	}
	switch {
	case c.takeUpTo(w, 1):
		c.pausing.probe = w.tasks[0]
	case c.takeBatch(w):
		c.pausing.probe = w.many[0]
	default:
		c.goOn() // nothing is there to probe with
		return false
	}
	return true
}

// judgeProbe looks at what a call says about the availability of the things that handlers need.
func (c *consumer) judgeProbe(t *task) {
	probe := t == c.pausing.probe
	if probe {
		c.pausing.probe = nil
	}
	switch {
	case t.unavailable > 0:
		if until := time.Now().Add(t.unavailable); until.After(c.pausing.until) {
			c.pausing.until = until
		}
		c.pausing.why = t.lacks
		t.unavailable, t.lacks = 0, nil
		c.stand()
		c.wakeAt(c.pausing.until) // while a probe runs, the timer does not look at the pause
	case probe && t.outcome != abandon:
		c.goOn()
	case probe:
		c.wakeAt(time.Now())
	}
}

// endPause sees to the probe when the pause is over. If nothing is there to probe with, consuming goes on.
func (c *consumer) endPause(now time.Time) {
	switch {
	case !c.suspended() || c.pausing.probe != nil:
	case c.pausing.until.After(now):
		c.wakeAt(c.pausing.until)
	case c.takeable() == 0:
		c.goOn()
	}
}

// goOn ends the suspension, and tells all waiters.
func (c *consumer) goOn() {
	c.pausing = suspension{}
	c.stand()
	c.flight.room.Broadcast()
	c.fetching.wake.Broadcast()
}
