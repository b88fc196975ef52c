package router

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

func (t *task) poisonEntry(now time.Time) *bus.PoisonEntry {
	return &bus.PoisonEntry{
		ID:      bus.NewID(),
		Message: t.h.Delivery.Message,
		Topic:   t.h.Delivery.Topic, Group: t.h.Delivery.Group, Handler: t.h.Delivery.Handler,
		Lane: t.h.Delivery.Lane, Position: t.h.Delivery.Position,
		Failure: *t.failure, Host: hostname(), Time: now,
	}
}

var hostname = sync.OnceValue(func() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
})

// poisonOrHold puts the task's message into the group's poison queue. While that is not reachable the message stays
// held and is put again with back-off; the in-flight bound then slows the intake down.
func (c *consumer) poisonOrHold(t *task) {
	switch {
	case c.poison(t) == nil:
		t.outcome = settle
	case t.lane.ctx.Err() != nil:
		t.outcome = abandon
	default:
		b := backoff{next: backoffFirst << min(t.putFails, 6)}
		t.putFails++
		t.outcome, t.due = hold, time.Now().Add(b.delay())
	}
}

func (c *consumer) poison(t *task) error {
	err := c.core.putPoison(t.lane.ctx, c.sub.Group, *t.entry)
	if err == nil {
		c.log.Error("message poisoned", "handler", t.entry.Handler, "id", t.h.Delivery.ID, "entry", t.entry.ID, "attempt", t.failure.Attempts, "class", t.failure.Class, "err", t.failure.Text)
		if t.route != nil {
			t.route.poisoned.Add(1)
		}
		for _, hook := range c.core.hooks.poisoned {
			hook.Poisoned(t.lane.ctx, *t.entry)
		}
		return nil
	}
	if t.lane.ctx.Err() == nil {
		c.log.Error("the poison queue cannot be written to; the message stays and is put again", "id", t.h.Delivery.ID, "err", err)
	}
	return err
}

// putPoison stores an entry.
func (c *core) putPoison(ctx context.Context, group string, e bus.PoisonEntry) error {
	store, err := c.poisonStore(ctx, group)
	if err != nil {
		return err
	}
	return store.Put(ctx, e)
}

// poisonStore is a group's; it is opened at its first use.
func (c *core) poisonStore(ctx context.Context, group string) (bus.PoisonStore, error) {
	c.poisonMu.Lock()
	defer c.poisonMu.Unlock()
	if store := c.poison[group]; store != nil {
		return store, nil
	}
	store, err := c.bus.Driver().Poison(ctx, group)
	if err != nil {
		return nil, err
	}
	c.poison[group] = store
	return store, nil
}

// poisonStored poisons messages whose key is to wait for somebody to replay or drop them. They are parked by now, because
// a poison entry says where. If the consumer ends before it is written, they are tried again at once by whoever comes next.
func (c *consumer) poisonStored(tasks []*task) {
	defer c.poisoning.Done()
	var not []bus.Parking
	for _, t := range tasks {
		e, token := t.entry, t.token()
		e.Lane, e.Position, e.Waits = token.Lane, token.Position, true
		e.ID = t.waitingID()
		b := backoff{}
		for c.poison(t) != nil && t.lane.ctx.Err() == nil {
			if b.wait(c.intake); c.intake.Err() != nil {
				not = append(not, bus.Parking{Delivery: t.h.Delivery, Due: time.Now()})
				not[len(not)-1].Token, not[len(not)-1].Failure = token, t.failure
				break
			}
		}
	}
	if len(not) > 0 {
		c.store(not)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range tasks {
		t.lane.release()
		c.recycle(t)
	}
}

// waitingID is the id of the entry of a message whose key waits: so that a later failure replaces it, but not one after a replay, which is
// about to remove it.
func (t *task) waitingID() string {
	token := t.token()
	return fmt.Sprintf("%s/%d/%d/%d", t.h.Delivery.Topic, token.Lane, token.Position, t.failure.Replays)
}

// unpoison removes the entry of a message whose key waited, and that was handled by itself before anybody replayed it.
func (c *consumer) unpoison(t *task) {
	if !t.fetched || t.failure == nil || t.failure.Class == "" { // only what was poisoned has a class
		return
	}
	store, err := c.core.poisonStore(t.lane.ctx, c.sub.Group)
	if err == nil {
		err = store.Remove(t.lane.ctx, t.waitingID())
	}
	if err != nil {
		c.log.Warn("a message was handled, but its entry is still in the poison queue: drop it there", "id", t.h.Delivery.ID, "entry", t.waitingID(), "err", err)
	}
}
