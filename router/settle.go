package router

import (
	"errors"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
)

// settle hands a task over to the settler. Called with the lock held.
func (c *consumer) settle(t *task) {
	c.relief.settled++
	c.poisoning.trouble.over(t)
	if t.settled || t.joined {
		c.recycle(t)
		return
	}
	c.move(t, taskSettling)
	c.settling.queue = append(c.settling.queue, t)
	if len(c.settling.queue) == 1 {
		c.settling.wake.Signal()
	}
}

// settleFirst settles tasks, durably, that are about to be handled at most once. A task that may or
// may not be settled is not handled.
func (c *consumer) settleFirst(tasks ...*task) bool {
	tokens := make([]bus.Token, 0, len(tasks))
	for _, t := range tasks {
		if !t.settled { // else this is another try
			tokens = append(tokens, t.token())
		}
	}
	if len(tokens) > 0 && !c.settleDurably(tokens) {
		return false
	}
	for _, t := range tasks {
		t.settled = true
	}
	return true
}

// settleFirstOf is settleFirst for a batch. If a lane goes, the tasks of the other lanes are
// settled all the same, and the caller handles them.
func (c *consumer) settleFirstOf(tasks []*task) (settled, not []*task) {
	if len(tasks) == 0 || c.settleFirst(tasks...) {
		return tasks, nil
	}
	byLane := map[*lane][]*task{}
	for _, t := range tasks {
		byLane[t.lane] = append(byLane[t.lane], t)
	}
	for _, tasks := range byLane {
		if c.settleFirst(tasks...) {
			settled = append(settled, tasks...)
		} else {
			not = append(not, tasks...)
		}
	}
	return settled, not
}

// settleDurably returns whether tokens are settled for sure. A lane that goes takes settlements with it that nobody had
// committed; so they are settled again behind the commit, which fails then, and changes nothing otherwise.
func (c *consumer) settleDurably(tokens []bus.Token) bool {
	source, ok := c.source.(driver.Committer)
	if !ok {
		return c.settleTokens(tokens) == nil
	}
	const failing = "committing failed"
	defer c.conditions.Note(failing, nil)
	for b := (backoff.Backoff{}); c.settleTokens(tokens) == nil; b.Wait(c.ctx) {
		err := source.Commit(c.ctx)
		if err == nil {
			return c.settleTokens(tokens) == nil
		}
		c.conditions.Note(failing, err)
	}
	return false
}

// settler settles finished tasks in batches. While one batch is under way the next gathers, so a
// slow broker makes larger batches and a quick one adds no delay.
func (c *consumer) settler() {
	defer close(c.settling.over)
	var tokens []bus.Token
	for {
		batch := c.nextDone()
		if batch == nil {
			return
		}
		if c.cfg.transactional {
			batch = c.transact(batch)
		} else {
			tokens = tokens[:0]
			for _, t := range batch {
				tokens = append(tokens, t.token())
			}
			err := c.settleTokens(tokens) // logged; they come again
			for _, t := range batch {
				c.notifySettled(t, err)
			}
		}
		c.mu.Lock()
		for _, t := range batch {
			c.recycle(t)
		}
		clear(batch)
		c.settling.spare = batch[:0]
		c.settling.underWay = 0
		if c.flight.full {
			c.relieve()
		}
		c.mu.Unlock()
	}
}

// nextDone waits for tasks to settle; nil is the end.
func (c *consumer) nextDone() []*task {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.settling.queue) == 0 {
		if c.settling.ended && c.poisoning.running == 0 {
			return nil
		}
		c.settling.wake.Wait()
	}
	batch := c.settling.queue
	c.settling.queue, c.settling.spare = c.settling.spare, nil
	c.settling.underWay = len(batch)
	return batch
}

// settleTokens settles, however often it takes, until the drain's patience ends. Stale tokens are not an error: the
// messages come again to the lane's owner.
func (c *consumer) settleTokens(tokens []bus.Token) error {
	for b := (backoff.Backoff{}); ; {
		err := c.source.Settle(c.ctx, tokens)
		if b != (backoff.Backoff{}) && (err == nil || errors.Is(err, bus.ErrStale)) {
			c.conditions.Note(settlingFailed, nil)
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, bus.ErrStale) {
			c.log.Debug("some messages were handled, but their lane has another owner; they come again", "err", err)
			return err
		}
		if c.ctx.Err() != nil || errors.Is(err, bus.ErrClosed) {
			c.log.Warn("handled messages could not be settled; they come again", "messages", len(tokens), "err", err)
			return err
		}
		c.conditions.Note(settlingFailed, err)
		b.Wait(c.ctx)
	}
}
