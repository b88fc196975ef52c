package router

import (
	"container/heap"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// named is what a cancellation names: delayed messages with this key and id.
type named struct{ key, id string }

func (t *task) named() named {
	return named{t.h.Delivery.Key, t.h.Delivery.Headers.Get(bus.HeaderCancels)}
}

// cancelDelayed takes a cancellation in. What it names came before it, and is held, or parked, or on its way to be parked. So the
// cancellation goes that way, too, and is seen to when all before it is stored. Called with the lock held.
func (c *consumer) cancelDelayed(t *task) {
	t.lane.busy++
	what := t.named()
	if what.key == "" || what.id == "" {
		c.log.Warn("a cancellation names no message: its key or its header is missing", "id", t.h.Delivery.ID, "header", bus.HeaderCancels)
		c.settleTask(t)
		return
	}
	c.cancelHeld(t.lane, what)
	if !c.canFetch {
		c.settleTask(t)
		return
	}
	t.cancels = true
	c.toPark = append(c.toPark, t)
	c.parks.Signal()
}

// cancelHeld settles what is held in memory, before the cancellation.
func (c *consumer) cancelHeld(l *lane, what named) {
	kept := c.held[:0]
	for _, h := range c.held {
		d := &h.h.Delivery
		if !h.free || h.lane != l || d.Key != what.key || d.ID != what.id {
			kept = append(kept, h)
			continue
		}
		h.lane.busy++
		c.settleTask(h)
		c.log.Debug("a delayed message is cancelled", "id", what.id)
	}
	clear(c.held[len(kept):])
	c.held = kept
	heap.Init(&c.held)
}

// cancelParked sees to cancellations, on the parker's goroutine.
func (c *consumer) cancelParked(batch []*task) {
	byLane := map[*lane][]*task{}
	for _, t := range batch {
		byLane[t.lane] = append(byLane[t.lane], t)
	}
	for l, tasks := range byLane {
		names := map[named]bool{}
		for _, t := range tasks {
			names[t.named()] = true
		}
		delayed := c.takeDelayed(l, names)
		done := c.withdraw(l, delayed, names)
		c.cancelled(tasks, delayed, names, done)
	}
}

// takeDelayed takes the delayed messages that may be meant, as if they were being fetched.
func (c *consumer) takeDelayed(l *lane, names map[named]bool) []*parkedMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	var taken []*parkedMessage
	now := time.Now()
	seen := map[string]bool{}
	for n := range names {
		if seen[n.key] {
			continue
		}
		seen[n.key] = true
		for _, e := range c.lot.delayed[n.key] {
			if e.lane != l || e.away || !e.Due.After(now) || e.id != "" && !names[named{n.key, e.id}] {
				continue
			}
			if e.away = true; e.at >= 0 {
				heap.Remove(&c.lot.waiting, e.at)
			}
			taken = append(taken, e)
		}
	}
	return taken
}

// withdraw settles those of delayed that are named: durably, because a crash must not leave one whose cancellation is settled. It
// returns false if the lane is not ours any more: its next owner is given the cancellations again.
func (c *consumer) withdraw(l *lane, delayed []*parkedMessage, names map[named]bool) bool {
	var unknown []*parkedMessage
	for _, e := range delayed {
		if e.id == "" {
			unknown = append(unknown, e)
		}
	}
	for chunk := range slices.Chunk(unknown, maxFetched) {
		if !c.identify(l, chunk) {
			return false
		}
	}
	var tokens []bus.Token
	for _, e := range delayed {
		if names[named{e.Key, e.id}] {
			tokens = append(tokens, e.Token)
		}
	}
	return len(tokens) == 0 || c.settleDurably(tokens)
}

// identify fetches messages to learn their ids, however often it takes.
func (c *consumer) identify(l *lane, es []*parkedMessage) bool {
	tokens := make([]bus.Token, len(es))
	for i, e := range es {
		tokens[i] = e.Token
	}
	dst := make([]bus.Delivery, len(es))
	for b := (backoff{}); l.ctx.Err() == nil; b.wait(l.ctx) {
		n, err := c.fetch(l.ctx, tokens, dst)
		if err != nil {
			c.log.Warn("fetching delayed messages, of which some are cancelled, failed; trying again", "messages", len(es), "err", err)
			continue
		}
		for _, e := range es { // some may be missing; the others are in order
			if n > 0 && dst[0].Token == e.Token {
				e.id = strings.Clone(dst[0].ID)
				dst, n = dst[1:], n-1
			}
		}
		return true
	}
	return false
}

// cancelled lets go of cancellations, and of what was taken for them.
func (c *consumer) cancelled(tasks []*task, delayed []*parkedMessage, names map[named]bool, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range delayed {
		e.away = false
		meant := names[named{e.Key, e.id}]
		if done && meant && !e.gone {
			c.log.Debug("a delayed message is cancelled", "id", e.id)
		}
		if done && meant || e.lane.gone {
			c.lot.remove(e)
		} else {
			c.await(e)
		}
	}
	for _, t := range tasks {
		if done {
			c.settleTask(t)
			continue
		}
		t.lane.release()
		c.recycle(t)
	}
	c.wakeFetcher()
}

// fetch is ParkingSource.Fetch, with one caller at a time.
func (c *consumer) fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	c.fetching.Lock()
	defer c.fetching.Unlock()
	return c.source.(bus.ParkingSource).Fetch(ctx, tokens, dst)
}
