package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/logattr"
)

// decide decides the next step after a try that ended with err, and notes it in the task.
func (c *consumer) decide(t *task, err error) {
	switch {
	case t.stale:
		c.retryStale(t)
	case t.joined:
		if err != nil {
			c.log.Error("a handler failed after its message was settled; the message does not come again", "handler", t.route.name, "id", logattr.Text(t.h.Delivery.ID), "err", err)
		}
		c.succeed(t)
	case err == nil:
		c.succeed(t)
	case t.lane.ctx.Err() != nil:
		t.outcome = abandon // the lane or the process is going; the failure may well come from that
	default:
		c.decideError(t, err)
	}
}

// retryStale has a task tried again that could not be settled in its handler's transaction.
func (c *consumer) retryStale(t *task) {
	if t.stale = false; t.lane.ctx.Err() != nil {
		t.outcome = abandon
		return
	}
	t.tries--
	c.retryAt(t, time.Now().Add(staleDelay), 0)
}

// decideError is decide for an error of the handler.
func (c *consumer) decideError(t *task, err error) {
	r := t.route
	now := time.Now()
	first := now
	if t.failure != nil && !t.failure.First.IsZero() { // a replay begins anew
		first = t.failure.First
	}
	ruling, err := r.policy.judged(err, t.h.Delivery.Attempt, first, now)
	if ruling.kind == succeeded {
		c.log.Info("error ignored", "handler", r.name, "id", logattr.Text(t.h.Delivery.ID), "err", err)
		c.succeed(t)
		return
	}
	if c.wasNoTry(t, err, now) {
		return
	}
	r.failed.Add(1)
	last := err // of its own, so that err need not live on the heap of every call
	r.lastError.Store(&last)
	t.failed(err, now)
	if p, ok := errors.AsType[*PanicError](err); ok {
		t.failure.Stack = p.Stack
	}
	if ruling.kind == retry {
		c.unpoison(t) // it waits for its next try, and for no replay any more
		t.failure.Class = ""
		how := class(err, "failed")
		c.blame.Tell(slog.LevelWarn, "handler failed; the message is tried again", failureOf{r.name, how},
			"handler", r.name, "class", how, "id", logattr.Text(t.h.Delivery.ID), "attempt", t.h.Delivery.Attempt, "in", ruling.delay, "err", err)
		c.retryLater(t, now, ruling.delay, 1)
		return
	}
	t.failure.Class = ruling.class
	c.giveUp(t, err, now)
}

// wasNoTry says whether a call does not count as a try, because the handler only put the message off.
func (c *consumer) wasNoTry(t *task, err error, now time.Time) bool {
	if d, ok := bus.UnavailableFor(err); ok {
		c.blame.Tell(slog.LevelWarn, "the handler says that a dependency is not available; consuming pauses", t.route.name,
			"handler", t.route.name, "id", logattr.Text(t.h.Delivery.ID), "for", d, "err", err)
		t.tries--
		t.unavailable, t.lacks = max(d, time.Millisecond), err
		c.retryAt(t, now, 0)
		return true
	}
	if d, ok := bus.PostponedFor(err); ok {
		c.log.Debug("the message is postponed", "handler", t.route.name, "id", logattr.Text(t.h.Delivery.ID), "for", d, "err", err)
		t.tries--
		c.retryLater(t, now, d, 0)
		return true
	}
	return false
}

// giveUp decides by the policy about a message that is not tried any more.
func (c *consumer) giveUp(t *task, err error, now time.Time) {
	r, class := t.route, t.failure.Class
	switch r.policy.Then {
	case Drop:
		c.blame.Tell(slog.LevelError, "handler failed; the message is dropped, as its policy says", failureOf{r.name, class},
			"handler", r.name, "class", class, "id", logattr.Text(t.h.Delivery.ID), "attempt", t.h.Delivery.Attempt, "err", err)
		t.outcome = settle
	case Stop:
		t.outcome = abandon
		c.halt(fmt.Errorf("handler %s: message %q: %s after %d tries, and its policy says stop: %w", r.name, t.h.Delivery.ID, class, t.h.Delivery.Attempt, err))
	default:
		t.entry = t.poisonEntry(now)
		c.decidePoison(t, r.policy.KeyWaits, now)
	}
}

// decidePoison decides that a message goes into the poison queue. If its key is to wait, the message
// is parked first.
func (c *consumer) decidePoison(t *task, keyWaits bool, now time.Time) {
	t.outcome = poison
	if keyWaits && c.canPark && t.keyed {
		t.outcome, t.due, t.keyWaits = park, now.Add(blockedFor), true
	}
}

// failureOf is a kind of failure that the log tells apart.
type failureOf struct{ handler, class string }

func (c *consumer) succeed(t *task) {
	t.route.handled.Add(1)
	t.outcome = settle
	c.unpoison(t)
}

// failed notes a try that failed.
func (t *task) failed(err error, now time.Time) {
	if t.failure == nil {
		t.failure = &bus.Failure{}
	}
	if t.failure.First.IsZero() {
		t.failure.First = now
	}
	t.failure.Text, t.failure.Last, t.failure.Attempts = textOf(err), now, t.h.Delivery.Attempt
}

// textOf is an error's text, within bounds: it travels with the message, for which brokers have a limit.
func textOf(err error) string {
	const most = 16 << 10 // bytes
	return cut(err.Error(), most)
}

// cut cuts a text off after so many bytes.
func cut(text string, most int) string {
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// staleDelay is the delay until a stale message is tried again: its lane may just be going.
const staleDelay = 10 * time.Millisecond

// halt stops consuming because a policy says so; the router's other handlers go on.
func (c *consumer) halt(err error) {
	c.close() // before the worker lets go of the message: the later ones of its key must not be handled
	c.mu.Lock()
	c.state, c.err = StateFailed, err
	c.stand()
	c.mu.Unlock()
	c.log.Error("consuming stops", "err", err)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), c.core.drainTimeout)
		defer cancel()
		_ = c.stop(ctx) // the reason is kept for health
	}()
}

// retryLater is retryAt in d from now. A long delay is spent at the broker.
func (c *consumer) retryLater(t *task, now time.Time, d time.Duration, tries int) {
	c.retryAt(t, now.Add(d), tries)
	if c.canPark && d >= parkFrom {
		t.outcome = park
	}
}

// retryAt holds the task for another try, with a message and a context of its own. The task may
// wait for long, and the received message shares memory with those that came with it. The last
// handler may have left something running in the old context.
func (c *consumer) retryAt(t *task, due time.Time, tries int) {
	t.outcome, t.due = hold, due
	d := t.h.Delivery
	d.Message = d.Message.Clone()
	d.Attempt += tries
	if t.failure != nil {
		told := *t.failure // the handler may keep it
		d.Failure = &told
	}
	t.again = engine.New(t.lane.ctx, c.core.bus, d)
}
