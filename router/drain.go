package router

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// errDrained is the cause with which handlers are cancelled that outlast the drain.
var errDrained = errors.New("the drain timeout has passed")

// stop drains: no new message, running handlers to their end, then all settlements, then the source is closed. The drain has the router's
// drain timeout; the context of each caller shortens it. It is idempotent; each call waits for the end.
func (c *consumer) stop(ctx context.Context) error {
	c.stopping.Do(func() {
		ctx, cancel := context.WithTimeout(c.patience, c.core.drainTimeout)
		go func() {
			defer cancel()
			c.drain(ctx)
		}()
	})
	defer context.AfterFunc(ctx, c.hurry)()
	<-c.stopped
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// lastMoment is the time that handlers have to heed the end of their contexts.
const lastMoment = time.Second

// drain ends the consumer in stages. Each waits for the one before it, because it has what that produces.
func (c *consumer) drain(ctx context.Context) {
	started, failed := c.endIntake()
	if !started { // start has not come so far: it ends by the intake's context
		return
	}
	defer context.AfterFunc(ctx, c.cutShort)()
	err := c.awaitHandlers(ctx)
	c.endParking()
	err = errors.Join(err, c.awaitEnd(ctx, c.parking.over))
	c.endSettling()
	err = errors.Join(err, c.awaitEnd(ctx, c.settling.over), c.closeSource(ctx))
	c.cancel(bus.ErrClosed)
	c.blame.Flush()
	c.conditions.Close()
	c.mu.Lock()
	c.crew.watchdog.Stop()
	if c.timer != nil {
		c.timer.Stop()
	}
	if !failed {
		c.state, c.err = StateStopped, err
	}
	c.stand()
	c.mu.Unlock()
	close(c.stopped)
}

// endIntake lets no message come in, and no handler begin. It says whether the consumer had started, and whether it had failed.
func (c *consumer) endIntake() (started, failed bool) {
	c.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	if c.source == nil {
		return false, false
	}
	failed = c.state == StateFailed
	if !failed {
		c.state = StateDraining
		c.stand()
	}
	c.crew.work.Broadcast()
	c.flight.room.Broadcast()
	c.fetching.wake.Broadcast()
	c.cancelling.wake.Broadcast()
	return true, failed
}

// cutShort cancels what still runs, and has the stages look at it: now, and when its last moment is over.
func (c *consumer) cutShort() {
	wake := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.crew.work.Broadcast()
		c.parking.wake.Broadcast()
	}
	c.cancel(errDrained)
	wake()
	time.AfterFunc(lastMoment, wake)
}

// awaitHandlers waits for the handlers that run, and the entries that are put into the poison queue. Handlers that do not heed the end of
// their context are left behind.
func (c *consumer) awaitHandlers(ctx context.Context) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var over time.Time
	for c.crew.running > 0 {
		if ctx.Err() != nil && over.IsZero() {
			over = time.Now()
			c.log.Warn("handlers still run when the drain timeout has passed; they are cancelled, and their messages come again", "handlers", c.crew.running)
		}
		if !over.IsZero() && time.Since(over) >= lastMoment {
			err = fmt.Errorf("topic %q: %d handlers of group %q still ran %v after the drain timeout, when they were cancelled; their messages come again", c.sub.Topic, c.crew.running, c.sub.Group, lastMoment)
			break
		}
		c.crew.work.Wait()
	}
	for _, w := range c.crew.workers {
		c.finishHandled(w) // of those that are left behind
	}
	return err
}

// endParking parks the messages between two tries, and has the parker end after them.
func (c *consumer) endParking() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parkTried(func(t *task) bool { return !t.lane.gone() })
	c.parking.ended = true
	c.parking.wake.Broadcast()
}

// endSettling has the settler end when all that is done is settled.
func (c *consumer) endSettling() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settling.ended = true
	c.settling.wake.Broadcast()
}

// closeSource closes the source. That is worth a moment even if nothing is left of the drain's time.
func (c *consumer) closeSource(ctx context.Context) error {
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) > closeTimeout {
		closing = ctx
	}
	if err := c.source.Close(closing); err != nil && !errors.Is(err, bus.ErrClosed) {
		return fmt.Errorf("close topic %q: %w", c.sub.Topic, err)
	}
	return nil
}

// awaitEnd waits for the goroutines that make results durable.
func (c *consumer) awaitEnd(ctx context.Context, ended <-chan struct{}) error {
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	last := time.NewTimer(lastMoment) // it ends by the context, too
	defer last.Stop()
	select {
	case <-ended:
		return nil
	case <-last.C:
		return fmt.Errorf("topic %q: settling of group %q did not end in time: %w", c.sub.Topic, c.sub.Group, ctx.Err())
	}
}

const closeTimeout = 5 * time.Second
