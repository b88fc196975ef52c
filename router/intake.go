package router

import (
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/cloudevents"
)

// maxReceive is how many deliveries are asked for at once: enough to make a lock and a round trip per batch cheap.
const maxReceive = 512

// pump pulls deliveries while there is room for them.
func (c *consumer) pump() {
	buf := make([]bus.Delivery, min(c.cfg.inFlight.messages, maxReceive))
	var b backoff.Backoff
	for {
		n, bytes := c.waitForRoom()
		if n == 0 {
			return
		}
		n, err := c.source.Receive(c.intake, buf[:min(n, len(buf))], bytes)
		if n > 0 {
			c.admit(buf[:n])
			clear(buf[:n]) // the buffer must not keep messages alive
		}
		switch {
		case err == nil:
			if b != (backoff.Backoff{}) {
				b = backoff.Backoff{}
				c.receiving(nil)
			}
		case c.intake.Err() != nil:
			return
		case errors.Is(err, bus.ErrClosed):
			err = fmt.Errorf("receive from topic %q: %w", c.sub.Topic, err)
			c.halt(err)
			c.core.end(err)
			return
		default:
			c.receiving(err)
			b.Wait(c.intake)
		}
	}
}

// receiving notes whether receiving works. An error that is not retryable tells of a loss, so the
// log has each.
func (c *consumer) receiving(err error) {
	lost := err
	if bus.IsRetryable(err) {
		lost = nil
	}
	if lost == nil {
		c.conditions.Note("receiving failed", err)
	} else {
		c.log.Error("receiving failed; trying again", "err", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = lost
}

// waitForRoom returns how much may be received now; 0 messages when the intake has ended.
func (c *consumer) waitForRoom() (messages, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.hasRoom() {
		if c.draining {
			return 0, 0
		}
		c.flight.full = true
		if c.relieve(); !c.hasRoom() {
			c.flight.room.Wait()
		}
		c.flight.full = false
	}
	if c.draining {
		return 0, 0
	}
	return c.cfg.inFlight.messages - c.flight.messages, max(c.cfg.inFlight.bytes-c.flight.bytes, 1)
}

// hasRoom waits for a quarter of the bounds to be free, so that batches stay large, unless the workers would run dry.
func (c *consumer) hasRoom() bool {
	messages, bytes := c.cfg.inFlight.messages-c.flight.messages, c.cfg.inFlight.bytes-c.flight.bytes
	if c.draining {
		return true
	}
	if c.paused || c.suspended() || messages <= 0 || (bytes <= 0 && c.flight.messages > 0) {
		return false
	}
	return (messages >= c.cfg.inFlight.messages/4 && bytes >= c.cfg.inFlight.bytes/4) || c.ready.n < c.cfg.workers
}

// slab is how many messages are admitted under one lock, so that workers wait for a moment only. It
// is also how many handlings are allocated at once. A message that is kept for long keeps its slab.
const slab = 64

// admit takes a batch of deliveries into the scheduler.
func (c *consumer) admit(batch []bus.Delivery) {
	now := time.Now()
	unwrapped := unwrap(batch)
	for from := 0; from < len(batch); from += slab {
		run := batch[from:min(from+slab, len(batch))]
		handlings := make([]bus.Handling, len(run))
		for i := range run {
			c.complete(&run[i], now)
			engine.Begin(&handlings[i], c.ctx, c.core.bus, run[i])
		}
		c.admitRun(handlings, unwrapped.from(from))
	}
}

func (c *consumer) admitRun(handlings []bus.Handling, unwrapped unwrapErrors) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return // not settled, so the source gives them back when it is closed
	}
	var l *lane
	for i := range handlings {
		h := &handlings[i]
		if l == nil || l.id.ID != h.Delivery.Lane {
			l = c.lanes[h.Delivery.Lane]
		}
		if l == nil || l.id.Epoch != h.Delivery.Epoch || l.gone() {
			l = nil
			continue // the lane went while the batch was under way; its next owner is given the message
		}
		h.Context = l.ctx
		t := c.newTask(h, l)
		c.admitTask(t, unwrapped.at(i))
	}
	c.wakeWorkers()
}

// unwrap unwraps messages in structured mode.
func unwrap(batch []bus.Delivery) (errs unwrapErrors) {
	for i := range batch {
		if err := cloudevents.Unwrap(batch[i].Message); err != nil {
			if errs == nil {
				errs = make([]error, len(batch))
			}
			errs[i] = err
		}
	}
	return errs
}

// unwrapErrors are index-aligned with a batch, or nil: failures are rare.
type unwrapErrors []error

func (e unwrapErrors) at(i int) error {
	if e == nil {
		return nil
	}
	return e[i]
}

func (e unwrapErrors) from(i int) unwrapErrors {
	if e == nil {
		return nil
	}
	return e[i:]
}

// complete fills the fields that the driver left to the router.
func (c *consumer) complete(d *bus.Delivery, now time.Time) {
	d.Group = c.sub.Group
	d.Attempt = max(d.Attempt, 1)
	if d.FirstSeen.IsZero() {
		d.FirstSeen = now
	}
}

// admitTask takes a message to its handler, or into the line of its key.
func (c *consumer) admitTask(t *task, unwrapped error) {
	t.route = c.table.route(&t.h.Delivery)
	switch {
	case unwrapped != nil:
		class := "undecodable"
		// the driver could not read a parked message
		if f := t.h.Delivery.Failure; f != nil && f.Class == driver.Unreadable {
			class = driver.Unreadable
		}
		t.refuse(class, unwrapped)
	case t.h.Delivery.Type == bus.TypeCancellation:
		c.cancelDelayed(t)
		return
	case t.route == nil:
		if settled := c.refuseUnknown(t); settled {
			return
		}
	default:
		t.h.Delivery.Handler = t.route.name
	}
	t.key = t.h.Delivery.Key // a copy: h is changed by the worker that has the task
	t.keyed = t.key != "" && !c.cfg.unordered
	if !t.fetched && t.h.Delivery.Headers.Get(bus.HeaderDeliverAt) != "" && c.postpone(t) {
		return
	}
	c.enter(t)
}

// enter puts a task in the line of its key.
func (c *consumer) enter(t *task) {
	switch {
	case c.isParked(t) && (!t.fetched || t.place.Delayed):
		t.keyed = false
		c.parkAt(t, -1, time.Time{})
	case !t.keyed || c.keys.enter(t):
		c.makeReady(t)
	default:
		c.move(t, taskBlocked)
	}
}

// postpone puts aside a message whose delivery time has not come yet; its key does not wait for it.
func (c *consumer) postpone(t *task) bool {
	due, err := engine.DeliverAt(t.h.Delivery.Message)
	if err != nil || !due.After(time.Now()) {
		return false
	}
	t.due, t.delayed, t.keyed = due, true, false
	if c.canPark {
		c.parkAt(t, -1, due)
	} else {
		c.hold(t)
	}
	return true
}

// replayed says whether the message has come from the poison queue.
func (t *task) replayed() bool { f := t.h.Delivery.Failure; return f != nil && f.Replays > 0 }

// refuse sends a task to the poison queue that no handler is called for.
func (t *task) refuse(class string, err error) {
	replays := 0
	if t.replayed() {
		replays = t.h.Delivery.Failure.Replays
	}
	t.failure = &bus.Failure{Class: class, Text: textOf(err), First: t.h.Delivery.FirstSeen, Last: t.h.Delivery.FirstSeen, Replays: replays}
	t.entry = t.poisonEntry(t.h.Delivery.FirstSeen)
}

func (c *consumer) newTask(h *bus.Handling, l *lane) *task {
	t := c.flight.free
	if t == nil {
		t = &task{}
	}
	c.flight.free, t.next = t.next, nil
	t.h, t.lane, t.size = h, l, h.Delivery.Message.Size()
	return t
}

// countInFlight has a message that came back from the broker count as in flight, if there is room.
// The message may stay for long, and others must come back meanwhile.
func (c *consumer) countInFlight(t *task) {
	if !t.beside || c.flight.messages >= c.cfg.inFlight.messages || c.flight.bytes >= c.cfg.inFlight.bytes {
		return
	}
	c.countTask(t, -1)
	t.beside = false
	c.countTask(t, 1)
	c.fetching.wake.Signal()
}
