package router

import (
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus/driver"
)

// Conditions that the router meets itself. They begin with an error, and end when the same works
// again.
const (
	subscribing    = "cannot subscribe yet"
	beginning      = "cannot begin the handler's transaction yet"
	settlingFailed = "settling failed"
	parkingFailed  = "parking failed"
	fetchingFailed = "fetching parked messages failed"
	poisonAway     = "the poison queue cannot be written to"
)

// standing is a subscription's state as health shows it, and since when.
type standing struct {
	state State
	since time.Time
}

// fetchingFailed names the condition that the lane's parked messages cannot be fetched.
func (l *lane) fetchingFailed() string { return fmt.Sprintf("%s for lane %d", fetchingFailed, l.id.ID) }

// stand notes the state that follows from everything else. Each change of its causes calls it, so
// that since is right. Called with the lock held, as all of this file.
func (c *consumer) stand() {
	if s := c.stateOf(); s != c.standing.state {
		c.standing = standing{s, time.Now()}
	}
}

// stateOf returns the state. Where several are true, the first counts: without a connection it does
// not matter that handlers are paused.
func (c *consumer) stateOf() State {
	switch {
	case c.state != StateRunning:
		return c.state
	case c.away != nil:
		return StateDisconnected
	case c.paused:
		return StatePaused
	case c.suspended():
		return StateSuspended
	case len(c.lanes) == 0:
		return StateWaiting
	default:
		return StateRunning
	}
}

// reason says why the subscription is in its state; "" if there is nothing to say.
func (c *consumer) reason() string {
	switch c.standing.state {
	case StateStarting:
		if c.err == nil {
			return "subscribing"
		}
		return textOf(c.err)
	case StateDisconnected:
		return textOf(c.away)
	case StatePaused:
		return "Pause was called"
	case StateSuspended:
		return fmt.Sprintf("until %s: %s", c.pausing.until.Format(time.TimeOnly), textOf(c.pausing.why))
	case StateWaiting:
		return "other members own all lanes, or the broker has not given this member any yet"
	case StateDraining:
		return fmt.Sprintf("asked to stop; %d messages are in flight", c.flight.messages+c.flight.fetchedMessages)
	case StateFailed:
		return textOf(c.err)
	default:
		return ""
	}
}

// wrong returns everything that does not work now; nil if nothing is wrong.
func (c *consumer) wrong() error {
	if c.state == StateStopped {
		return c.err
	}
	errs := []error{c.err}
	c.endIdleFetching()
	errs = append(errs, c.poisoning.trouble.all())
	for _, one := range c.conditions.All() {
		switch one.What {
		case subscribing, beginning, poisonAway: // they are there already
		case driver.Disconnected:
			errs = append(errs, one.Err)
		default:
			errs = append(errs, fmt.Errorf("%s: %w", one.What, one.Err))
		}
	}
	return errors.Join(errs...)
}

// Condition implements driver.ConditionObserver.
func (c *consumer) Condition(what string, err error) {
	c.conditions.Note(what, err)
	if what != driver.Disconnected {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = err
	c.stand()
}
