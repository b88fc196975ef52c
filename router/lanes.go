package router

import (
	"container/heap"
	"context"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// laneState is how far an ownership is in its life. It only goes on.
type laneState int8

const (
	laneOwned   laneState = iota
	laneLeaving           // being handed over: no handler starts any more
	laneLost              // nothing is settled any more either
)

// lane is one ownership of a lane by this process. Its fields are guarded by the consumer's lock.
type lane struct {
	id     bus.Lane
	ctx    context.Context // of the handlers of its messages
	cancel context.CancelCauseFunc
	// batches are the contexts of the batches in which its messages are handled.
	batches map[context.Context]context.CancelCauseFunc
	state   laneState
	// abandoned are keys with a message that was let go unsettled while the lane was going. Later
	// messages of the key must not be parked before it.
	abandoned map[string]bool
	fetches   backoff.Backoff // of its parked messages, while they cannot be fetched
	fetchFrom time.Time       // when they are tried again
	busy      int             // its tasks for which a handover waits
	idle      chan struct{}   // made by a revocation, closed when busy is 0
}

// gone says whether no handler may start any more.
func (l *lane) gone() bool { return l.state != laneOwned }

// lost says whether nothing may be settled any more either.
func (l *lane) lost() bool { return l.state == laneLost }

// countBusy counts a task that is busy now, or is not any more.
func (l *lane) countBusy(is bool) {
	if is {
		l.busy++
	} else if l.busy--; l.busy == 0 && l.idle != nil {
		close(l.idle)
		l.idle = nil
	}
}

// Assigned implements bus.LaneObserver.
func (c *consumer) Assigned(lanes []bus.Lane) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range lanes {
		l := &lane{id: id}
		l.ctx, l.cancel = context.WithCancelCause(c.ctx)
		if old := c.lanes[id.ID]; old != nil {
			c.lose(old, bus.ErrLaneLost)
			c.forgetGone()
		}
		c.lanes[id.ID] = l
	}
	c.stand()
	c.log.Debug("lanes assigned", "lanes", len(lanes), "owned", len(c.lanes))
}

// Revoking implements bus.LaneObserver: no handler starts any more for the lanes' messages, and those that run have
// until ctx ends; then they count as lost.
func (c *consumer) Revoking(ctx context.Context, lanes []bus.Lane) {
	c.mu.Lock()
	var leaving []*lane
	var idle []chan struct{}
	for _, id := range lanes {
		l := c.owned(id)
		if l == nil {
			continue
		}
		l.state = laneLeaving
		delete(c.lanes, id.ID)
		c.leaving[id] = l
		leaving = append(leaving, l)
	}
	c.stand()
	c.parkTried(func(t *task) bool { return t.lane.gone() && !t.lane.lost() })
	c.abandonHeld()
	c.forgetGone()
	for _, l := range leaving {
		if l.busy > 0 {
			if l.idle == nil {
				l.idle = make(chan struct{})
			}
			idle = append(idle, l.idle)
		}
	}
	c.mu.Unlock()
	for _, ch := range idle {
		select {
		case <-ch:
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range leaving {
		delete(c.leaving, l.id)
		c.lose(l, bus.ErrLaneLost)
	}
	c.log.Debug("lanes handed over", "lanes", len(leaving), "owned", len(c.lanes))
}

// Lost implements bus.LaneObserver.
func (c *consumer) Lost(lanes []bus.Lane, cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range lanes {
		if l := c.owned(id); l != nil {
			delete(c.lanes, id.ID)
			c.lose(l, &laneLostError{cause})
		} else if l := c.leaving[id]; l != nil { // while it was being handed over
			c.lose(l, &laneLostError{cause})
		}
	}
	c.stand()
	c.abandonHeld()
	c.forgetGone()
	c.log.Info("lanes lost", "lanes", len(lanes), "owned", len(c.lanes), "cause", cause)
}

// owned returns the lane if this very ownership is still held.
func (c *consumer) owned(id bus.Lane) *lane {
	if l := c.lanes[id.ID]; l != nil && l.id == id {
		return l
	}
	return nil
}

// lose ends an ownership: handlers that still run are told, and their results do not count.
func (c *consumer) lose(l *lane, cause error) {
	if l.fetches != (backoff.Backoff{}) { // the next owner's fetches are new ones
		c.conditions.Note(l.fetchingFailed(), nil)
	}
	l.state = laneLost
	l.cancel(cause)
	for _, cancel := range l.batches {
		cancel(cause)
	}
}

// abandonHeld lets go of the tasks of lanes that are gone, so that they do not fill the in-flight bound until due.
func (c *consumer) abandonHeld() {
	var gone []*task
	kept := c.held[:0]
	for _, t := range c.held {
		if t.lane.gone() {
			gone = append(gone, t)
		} else {
			kept = append(kept, t)
		}
	}
	if len(gone) == 0 {
		return
	}
	clear(c.held[len(kept):])
	c.held = kept
	heap.Init(&c.held)
	for _, t := range gone {
		t.outcome = abandon
		c.finish(t)
	}
	c.wakeWorkers()
}

// laneLostError is ErrLaneLost with the driver's reason.
type laneLostError struct{ cause error }

func (e *laneLostError) Error() string {
	if e.cause == nil {
		return bus.ErrLaneLost.Error()
	}
	return bus.ErrLaneLost.Error() + ": " + e.cause.Error()
}

func (e *laneLostError) Unwrap() []error { return []error{bus.ErrLaneLost, e.cause} }
