package router

import (
	"container/heap"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/logattr"
)

// named identifies what one cancellation applies to: delayed messages with this key and id.
type named struct{ key, id string }

// cancellations are names, and the position in the lane of the last cancellation of each.
type cancellations map[named]int64

// of says whether the cancellations apply to a message that is parked or will be parked. They apply
// only to messages from before them.
func (n cancellations) of(e *parkedMessage, id string) bool {
	position, ok := n[named{e.Key, id}]
	return ok && e.came <= position
}

func (t *task) named() named {
	return named{t.h.Delivery.Key, t.h.Delivery.Headers.Get(bus.HeaderCancels)}
}

// cancelDelayed takes a cancellation in. Its messages came before it, and are held, or parked, or
// wait to be parked. A message may also be being stored at this moment: then the cancellation waits
// for the outcome. Called with the lock held.
func (c *consumer) cancelDelayed(t *task) {
	what := t.named()
	if what.key == "" || what.id == "" {
		c.log.Warn("a cancellation names no message: its key or its header is missing", "id", logattr.Text(t.h.Delivery.ID), "header", bus.HeaderCancels)
		c.settle(t)
		return
	}
	c.cancelHeld(t.lane, what)
	if !c.canFetch {
		c.settle(t)
		return
	}
	c.move(t, taskCancelling)
	c.cancelling.queue = append(c.cancelling.queue, t)
	c.cancelling.wake.Signal()
}

// cancelHeld settles the messages held in memory, before the cancellation.
func (c *consumer) cancelHeld(l *lane, what named) {
	kept := c.held[:0]
	for _, h := range c.held {
		d := &h.h.Delivery
		if !h.delayed || h.lane != l || d.Key != what.key || d.ID != what.id {
			kept = append(kept, h)
			continue
		}
		c.settle(h)
		c.log.Debug("a delayed message is cancelled", "id", logattr.Text(what.id))
	}
	clear(c.held[len(kept):])
	c.held = kept
	heap.Init(&c.held)
}

// laneCancellations are cancellations of one lane, and the delayed messages that may be meant.
type laneCancellations struct {
	lane    *lane
	tasks   []*task
	names   cancellations
	delayed []*parkedMessage
}

// canceller sees to cancellations. A cancellation that cannot be looked at now is tried again
// behind the others.
func (c *consumer) canceller() {
	for b := (backoff.Backoff{}); ; {
		lanes := c.nextToCancel()
		if lanes == nil {
			return
		}
		failed := false
		for _, l := range lanes {
			f := c.withdraw(l)
			c.cancelled(l, f)
			failed = failed || f == cancelAgain
		}
		if failed {
			b.Wait(c.intake)
		} else {
			b = backoff.Backoff{}
		}
	}
}

// nextToCancel waits for cancellations of messages that are not being stored at this moment. It
// returns nil at the end.
func (c *consumer) nextToCancel() []*laneCancellations {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.draining {
			for _, t := range c.cancelling.queue { // they come again
				c.recycle(t)
			}
			c.cancelling.queue = nil
			return nil
		}
		being := map[named]bool{}
		for _, t := range c.parking.calling {
			if t.place.Delayed {
				being[named{t.key, t.h.Delivery.ID}] = true
			}
		}
		for _, s := range c.stuck.lines {
			if t := s.tasks[0]; t.unknown && t.place.Delayed {
				being[named{t.key, t.h.Delivery.ID}] = true
			}
		}
		var batch, rest []*task
		for _, t := range c.cancelling.queue {
			switch {
			// its names are forgotten here: the lane's next owner hears of the message, and is
			// given the cancellation
			case t.lane.gone():
				c.recycle(t)
			case len(batch) < maxReceive && !being[t.named()]:
				batch = append(batch, t)
			default:
				rest = append(rest, t)
			}
		}
		if c.cancelling.queue = rest; len(batch) > 0 {
			return c.takeDelayed(batch) // under the same lock: nothing of it begins to be stored in between
		}
		c.cancelling.wake.Wait()
	}
}

// takeDelayed takes the delayed messages that may be meant, as if they were being fetched, and
// settles those that are not stored.
func (c *consumer) takeDelayed(batch []*task) (lanes []*laneCancellations) {
	byLane := map[*lane]*laneCancellations{}
	for _, t := range batch {
		l := byLane[t.lane]
		if l == nil {
			l = &laneCancellations{lane: t.lane, names: cancellations{}}
			byLane[t.lane] = l
			lanes = append(lanes, l)
		}
		l.tasks = append(l.tasks, t)
		l.names[t.named()] = max(l.names[t.named()], t.h.Delivery.Position)
	}
	for _, l := range lanes {
		c.cancelWaiting(l.lane, l.names)
		l.delayed = c.delayedOf(l.lane, l.names)
	}
	return lanes
}

// cancelWaiting settles the named messages that are not stored: they wait to be parked, or are kept
// in memory. Called with the lock held.
func (c *consumer) cancelWaiting(l *lane, names cancellations) {
	meant := func(t *task) bool {
		return t.lane == l && !t.marked() && t.place.Delayed && names.of(t.place, t.h.Delivery.ID)
	}
	var cancelled []*task
	for _, t := range c.parking.queue {
		if meant(t) {
			cancelled = append(cancelled, t)
		}
	}
	for _, s := range c.stuck.lines {
		for _, t := range s.tasks {
			if t.storing != storeCalled && !t.unknown && meant(t) {
				cancelled = append(cancelled, t)
			}
		}
	}
	for _, t := range cancelled {
		c.unqueue(t)
	}
	for n := range names {
		for _, e := range c.lot.delayed[n.key] {
			if t := e.kept; t != nil && meant(t) {
				e.kept = nil
				cancelled = append(cancelled, t)
			}
		}
	}
	for _, t := range cancelled {
		c.unpark(t.place)
		c.settle(t)
		c.log.Debug("a delayed message is cancelled", "id", logattr.Text(t.h.Delivery.ID))
	}
}

// delayedOf takes the stored messages that may be meant.
func (c *consumer) delayedOf(l *lane, names cancellations) (taken []*parkedMessage) {
	now := time.Now()
	seen := map[string]bool{}
	for n := range names {
		if seen[n.key] {
			continue
		}
		seen[n.key] = true
		for _, e := range c.lot.delayed[n.key] {
			if e.lane != l || e.state != parkedWaiting || !e.Due.After(now) || e.id != "" && !names.of(e, e.id) {
				continue
			}
			if e.state = parkedAway; e.at >= 0 {
				heap.Remove(&c.lot.waiting, e.at)
			}
			taken = append(taken, e)
		}
	}
	return taken
}

// cancelFate is the outcome of cancellations.
type cancelFate int8

const (
	cancelDone  cancelFate = iota
	cancelLost             // the lane is not ours any more: its next owner is given them again
	cancelAgain            // the broker could not be asked
)

// withdraw settles the named messages among the delayed ones. It settles them durably: after a
// crash none may remain if its cancellation is settled.
func (c *consumer) withdraw(l *laneCancellations) cancelFate {
	var unknown []*parkedMessage
	for _, e := range l.delayed {
		if e.id == "" {
			unknown = append(unknown, e)
		}
	}
	for chunk := range slices.Chunk(unknown, maxFetched) {
		if err := c.identify(l.lane, chunk); err != nil {
			if l.lane.ctx.Err() != nil {
				return cancelLost
			}
			c.log.Warn("fetching cancelled messages failed; trying again", "messages", len(chunk), "err", err)
			return cancelAgain
		}
	}
	if l.lane.ctx.Err() != nil { // messages may be missing because the lane was lost
		return cancelLost
	}
	var tokens []bus.Token
	for _, e := range l.delayed {
		if l.names.of(e, e.id) {
			tokens = append(tokens, e.Token)
		}
	}
	if len(tokens) > 0 && !c.settleDurably(tokens) {
		return cancelLost
	}
	return cancelDone
}

// identify fetches messages to learn their ids.
func (c *consumer) identify(l *lane, es []*parkedMessage) error {
	tokens := make([]bus.Token, len(es))
	for i, e := range es {
		tokens[i] = e.Token
	}
	dst := make([]bus.Delivery, len(es))
	n, err := c.fetch(l.ctx, tokens, dst)
	if err != nil {
		return err
	}
	for _, e := range es { // some may be missing; the others are in order
		if n > 0 && dst[0].Token == e.Token {
			e.id = strings.Clone(dst[0].ID)
			dst, n = dst[1:], n-1
		}
	}
	return nil
}

// cancelled lets go of cancellations, and of the messages that were taken for them.
func (c *consumer) cancelled(l *laneCancellations, f cancelFate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range l.delayed {
		switch {
		case e.state == parkedGone:
		case f == cancelDone && l.names.of(e, e.id):
			c.log.Debug("a delayed message is cancelled", "id", logattr.Text(e.id))
			c.unpark(e)
		default:
			c.comeBack(e)
		}
	}
	for _, t := range l.tasks {
		switch {
		case f == cancelDone:
			c.settle(t)
		case f == cancelAgain && !t.lane.gone():
			c.cancelling.queue = append(c.cancelling.queue, t)
		default:
			c.recycle(t)
		}
	}
	c.wakeFetcher()
}

// fetch is ParkingSource.Fetch, with one caller at a time.
func (c *consumer) fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	select {
	case c.fetching.calling <- struct{}{}:
		defer func() { <-c.fetching.calling }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return c.source.(driver.ParkingSource).Fetch(ctx, tokens, dst)
}
