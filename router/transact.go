package router

import (
	"errors"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/logattr"
)

// transact settles tasks, and publishes the messages they emitted, in transactions, however often
// it takes, until the drain's patience ends. Tasks that finish while a transaction fails join the
// next. It returns the tasks that it took and did not pass on to be poisoned.
func (c *consumer) transact(todo []*task) []*task {
	source := c.source.(driver.TransactionalSource)
	for b := (backoff.Backoff{}); ; {
		ss := make([]driver.Settlement, len(todo))
		for i, t := range todo {
			ss[i] = driver.Settlement{Token: t.token(), Outputs: t.outputs}
		}
		err := source.SettleWith(c.ctx, ss)
		_, each := errors.AsType[*bus.BatchError](err)
		switch {
		case err == nil || each:
			if b != (backoff.Backoff{}) {
				c.conditions.Note(settlingFailed, nil)
			}
			return c.settledEach(todo, bus.Outcomes(err, len(todo)))
		case c.ctx.Err() != nil || errors.Is(err, bus.ErrClosed):
			c.log.Warn("handled messages could not be settled, and their outputs are not published; they come again", "messages", len(todo), "err", err)
			for _, t := range todo {
				c.notifySettled(t, err)
			}
			return todo
		default:
			c.conditions.Note(settlingFailed, err)
			b.Wait(c.ctx)
			todo = append(todo, c.moreDone()...)
		}
	}
}

// settledEach goes on according to each task's outcome, and returns the tasks that are done with.
func (c *consumer) settledEach(tasks []*task, errs []error) (over []*task) {
	over = tasks[:0]
	for i, t := range tasks {
		err := errs[i]
		c.notifySettled(t, err)
		if err == nil || errors.Is(err, bus.ErrStale) {
			over = append(over, t)
			continue
		}
		// The broker will never take the emitted messages. Later messages of the key may have been
		// handled since.
		now := time.Now()
		t.outputs = nil
		t.failed(err, now)
		t.failure.Class = "outputs refused"
		t.entry = t.poisonEntry(now)
		c.mu.Lock()
		c.poison(t)
		c.mu.Unlock()
	}
	return over
}

// notifySettled tells those who wait for the settlement of a task how it went.
func (c *consumer) notifySettled(t *task, err error) {
	if t.onSettled == nil {
		return
	}
	if terr := t.onSettled(c.ctx, err); terr != nil && err == nil {
		c.log.Error("a message was settled, and a function of OnSuccess or OnEnd failed after that", "id", logattr.Text(t.h.Delivery.ID), "err", terr)
	}
	t.onSettled = nil
}

// moreDone takes the tasks that are done now.
func (c *consumer) moreDone() []*task {
	c.mu.Lock()
	defer c.mu.Unlock()
	more := c.settling.queue
	c.settling.queue = nil
	return more
}
