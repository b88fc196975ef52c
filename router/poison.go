package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/logattr"
)

// poisonEntry returns the entry of a message that its handler has refused.
func (t *task) poisonEntry(now time.Time) *driver.PoisonEntry {
	e := &driver.PoisonEntry{
		Message: t.h.Delivery.Message,
		Topic:   t.h.Delivery.Topic, Group: t.h.Delivery.Group, Handler: t.h.Delivery.Handler,
		Lane: t.h.Delivery.Lane, Position: t.h.Delivery.Position,
		Failure: *t.failure, Host: hostname(), Time: now,
	}
	e.ID = e.NaturalID() // the lane may be lost before the message is settled, and its next owner puts the entry again
	return e
}

var hostname = sync.OnceValue(func() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
})

const (
	// poisonTimeout bounds one call of the poison store. An entry not known to be stored by then is
	// put again, under the same id.
	poisonTimeout = 10 * time.Second
	// refusedFor is when a message is tried again that the poison store has refused.
	refusedFor = time.Hour
	// refusedText bounds a failure's text, without the stack, in the second attempt to store an
	// entry that was refused.
	refusedText = 1 << 10
)

// poison has a message put into the group's poison queue, beside the workers: a store that does not answer keeps none of them, and no
// other message. Called with the lock held.
func (c *consumer) poison(t *task) {
	c.move(t, taskPoisoning)
	c.poisoning.queue.push(t)
	if c.poisoning.running < c.cfg.workers {
		c.poisoning.running++
		c.crew.running++ // the drain waits for it
		go c.poisoner()
	}
}

// poisoner writes the entries of poisoned messages.
func (c *consumer) poisoner() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		t := c.poisoning.queue.pop()
		if t == nil {
			break
		}
		var err error
		if !(t.keyWaits && (!t.place.inLot() || t.place.changed)) { // else it was withdrawn or replayed, or its lane's next owner has it
			c.mu.Unlock()
			err = c.putEntry(t)
			c.mu.Lock()
		}
		c.afterPoison(t, err)
		c.wakeWorkers()
	}
	c.poisoning.running--
	c.crew.running--
	c.crew.work.Broadcast()
	c.settling.wake.Signal()
}

// afterPoison goes on with a message that is in the poison queue, or could not be put there.
func (c *consumer) afterPoison(t *task, err error) {
	c.poisoning.trouble.note(t, err)
	defer c.notePoisonAway()
	isRefused := err != nil && t.lane.ctx.Err() == nil && isRefusal(err)
	switch {
	case t.keyWaits && (err == nil || t.lane.gone() || isRefused):
		e := t.place
		if isRefused && !e.changed {
			e.Due = time.Now().Add(refusedFor)
		}
		c.comeBack(e)
		c.wakeFetcher()
		c.recycle(t)
		return
	case err == nil:
		t.outcome = settle
	case t.lane.ctx.Err() != nil:
		t.outcome = abandon
	case isRefused && c.canPark && !t.unparkable:
		t.outcome, t.due, t.entry = park, time.Now().Add(refusedFor), nil
	default:
		if t.putFails++; t.putFails == 1 {
			c.poisoning.trouble.waiting++
		}
		t.outcome, t.due = hold, time.Now().Add(backoff.Pause(t.putFails))
	}
	c.finish(t)
}

// notePoisonAway notes whether entries wait because the poison store cannot be reached.
func (c *consumer) notePoisonAway() { c.conditions.Note(poisonAway, c.poisoning.trouble.away()) }

// isRefusal says whether the poison store will never take an entry.
func isRefusal(err error) bool { return !bus.IsRetryable(err) && !errors.Is(err, bus.ErrClosed) }

// putEntry puts the task's entry. The message of a refused entry is never lost. It stays at the
// broker, parked if possible, and is tried again in an hour; its key waits.
func (c *consumer) putEntry(t *task) error {
	err := c.put(t.lane.ctx, t.entry)
	if err != nil && isRefusal(err) { // the failure may make it too large
		t.entry.Failure.Stack = ""
		t.entry.Failure.Text = cut(t.entry.Failure.Text, refusedText)
		err = c.put(t.lane.ctx, t.entry)
	}
	switch {
	case err == nil:
		c.blame.Tell(slog.LevelError, "message poisoned", failureOf{t.entry.Handler, t.failure.Class},
			"handler", t.entry.Handler, "class", t.failure.Class, "id", logattr.Text(t.h.Delivery.ID), "entry", t.entry.ID, "attempt", t.failure.Attempts, "err", t.failure.Text)
		if t.route != nil {
			t.route.poisoned.Add(1)
		} else if t.failure.Class == unknownType {
			c.unknown.Add(1)
		}
		for _, hook := range c.core.hooks.poisoned {
			c.guarded("Poisoned", func() { hook.Poisoned(t.lane.ctx, *t.entry) })
		}
	case t.lane.ctx.Err() != nil:
	case isRefusal(err):
		c.log.Error("the poison queue refuses a message; the message stays in flight, and is put again later", "id", logattr.Text(t.h.Delivery.ID), "lane", t.h.Delivery.Lane, "position", t.h.Delivery.Position, "in", refusedFor, "err", err)
	}
	return err
}

// put stores an entry.
func (c *consumer) put(ctx context.Context, e *driver.PoisonEntry) error {
	ctx, cancel := context.WithTimeout(ctx, poisonTimeout)
	defer cancel()
	store, err := c.core.poisonStore(ctx, c.sub.Group)
	if err != nil {
		return err
	}
	return store.Put(ctx, *e)
}

// poisonTrouble describes the trouble with the poison queue, for health.
type poisonTrouble struct {
	err     error            // of the last call that failed, nil if one succeeded since; it counts while tasks wait
	waiting int              // tasks whose entry could not be put yet
	refused map[string]error // by message
}

// note notes how putting a message went.
func (p *poisonTrouble) note(t *task, err error) {
	id := t.h.Delivery.ID
	switch {
	case err == nil:
		p.err = nil
		delete(p.refused, id)
	case t.lane.ctx.Err() != nil:
	case !isRefusal(err):
		p.err = err
	case len(p.refused) < maxRefused:
		if p.refused == nil {
			p.refused = map[string]error{}
		}
		p.refused[id] = fmt.Errorf("the poison queue refuses message %q: %w", id, err)
	}
}

// maxRefused bounds how many refused messages health knows of.
const maxRefused = 1000

// recycled notes that a task is gone whose entry could not be put.
func (p *poisonTrouble) recycled() { p.waiting-- }

// over notes that a message is done with.
func (p *poisonTrouble) over(t *task) {
	if len(p.refused) > 0 {
		delete(p.refused, t.h.Delivery.ID)
	}
}

// away says why entries cannot be put now; nil if none waits.
func (p *poisonTrouble) away() error {
	if p.waiting == 0 || p.err == nil {
		return nil
	}
	return p.err
}

// all is everything that is wrong; nil if nothing is.
func (p *poisonTrouble) all() error {
	err := p.away()
	if err != nil {
		err = fmt.Errorf("%s: %w", poisonAway, err)
	}
	for _, refused := range p.refused {
		if err = errors.Join(err, refused); len(p.refused) > 1 {
			err = fmt.Errorf("%w (and %d more messages)", err, len(p.refused)-1)
		}
		break
	}
	return err
}

// groupPoison is a group's poison store, opened at its first use.
type groupPoison struct {
	opening chan struct{} // has room for one opener
	store   driver.PoisonStore
}

// poisonStore returns a group's poison store.
func (c *core) poisonStore(ctx context.Context, group string) (driver.PoisonStore, error) {
	c.poisonMu.Lock()
	g := c.poison[group]
	if g == nil {
		g = &groupPoison{opening: make(chan struct{}, 1)}
		c.poison[group] = g
	}
	c.poisonMu.Unlock()
	select {
	case g.opening <- struct{}{}:
		defer func() { <-g.opening }()
	case <-ctx.Done():
		return nil, fmt.Errorf("open the poison queue of group %q: %w", group, ctx.Err())
	}
	if g.store == nil {
		store, err := driver.Of(c.bus).Poison(ctx, group)
		if err != nil {
			return nil, err
		}
		g.store = store
	}
	return g.store, nil
}

// waitingID is the id of the poison entry of a message whose key waits. The replay count is part of
// the id. So a later failure replaces the entry, except after a replay, which is about to remove
// the entry.
func (t *task) waitingID() string {
	token := t.token()
	return fmt.Sprintf("%s/%d/%d/%d", t.h.Delivery.Topic, token.Lane, token.Position, t.failure.Replays)
}

// poisonAt puts the message of a key that waits into the poison queue, with its place. It does so
// beside the other tasks, which need not wait for the poison queue.
func (c *consumer) poisonAt(t *task, place bus.Token) {
	t.entry.Lane, t.entry.Position, t.entry.Waits = place.Lane, place.Position, true
	t.entry.ID = t.waitingID()
	c.poison(t)
}

// waitsForReplay says whether a message that was fetched waits for its replay, since an owner of the
// lane has poisoned it. Only poisoned messages have a class, and a replay has none.
// A message that had no handler, and has one now, waits no longer.
func (c *consumer) waitsForReplay(t *task) bool {
	f := t.failure
	return f != nil && f.Class != "" && f.Class != driver.Unreadable && f.Class != unknownType && t.route != nil && t.route.policy.KeyWaits &&
		t.h.Delivery.Key != "" && time.Now().Before(f.Last.Add(blockedFor))
}

// waitOn has a message wait on that waits for its replay. Its entry is put again: nobody knows
// whether the owner that has poisoned it could write it.
func (c *consumer) waitOn(t *task) {
	e := t.place
	if e.changed { // it was replayed while it was fetched
		c.comeBack(e)
		c.recycle(t)
		return
	}
	e.Due = t.failure.Last.Add(blockedFor)
	t.h.Delivery.Handler = t.route.name
	t.keyWaits, t.entry = true, t.poisonEntry(t.failure.Last)
	c.poisonAt(t, e.Token)
}

// unpoison removes the entry of a message whose key waited, and which was tried again by itself
// before anybody replayed it. It is handled now, or waits for its next try.
func (c *consumer) unpoison(t *task) {
	// only poisoned messages have a class
	if !t.fetched || t.failure == nil || t.failure.Class == "" {
		return
	}
	ctx, cancel := context.WithTimeout(t.lane.ctx, poisonTimeout)
	defer cancel()
	store, err := c.core.poisonStore(ctx, c.sub.Group)
	if err == nil {
		err = store.Remove(ctx, t.waitingID())
	}
	if err != nil {
		c.log.Warn("a message waits for no replay any more, but its entry is still in the poison queue: drop it there", "id", logattr.Text(t.h.Delivery.ID), "entry", t.waitingID(), "err", err)
	}
}
