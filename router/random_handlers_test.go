package router_test

import (
	"context"
	"errors"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// begin checks what must be so when a message is handled.
func (w *world) begin(ctx context.Context, m *bus.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.messages[m.ID]
	n.started++
	w.say("begin %s", m.ID)
	if now := time.Now(); now.Before(n.due) {
		w.errorf("%s came %v early", m.ID, n.due.Sub(now))
	} else if w.plan.calm && now.Before(n.retry) && !n.replayed {
		w.errorf("%s came again %v early", m.ID, n.retry.Sub(now))
	}
	if d := bus.DeliveryFrom(ctx); w.plan.calm && !w.plan.batches && !n.bad && !n.replayed && d.Attempt != n.failed+1 {
		w.errorf("try %d of %s is told to be number %d", n.failed+1, m.ID, d.Attempt)
	}
	if other := w.running[n.key]; other != nil && other.Err() == nil && other != ctx {
		w.errorf("%s is handled while another one of its key is", m.ID)
	}
	w.running[n.key] = ctx
	if n.poisoned && w.plan.keyWaits && !n.replayed && !w.plan.faulty && !w.plan.lazy && w.plan.guarantee == router.AtLeastOnce {
		w.errorf("%s is handled although it waits for its replay", m.ID)
	}
	if n.delayed || n.poisoned && !w.plan.keyWaits || w.plan.guarantee == router.AtMostOnce {
		return // its place is not promised, or messages before it may be lost
	}
	for _, before := range w.byKey[n.key][:n.n] {
		if before.handled == 0 && !before.dropped && (!before.poisoned || w.plan.keyWaits) {
			w.errorf("%s is handled before number %d of its key: %+v", m.ID, before.n, *before)
			return
		}
	}
}

// verdict is a handler's result.
func (w *world) verdict(ctx context.Context, m *bus.Message) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.messages[m.ID]
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case time.Now().Before(w.missing) && w.again < time.Second:
		return bus.Unavailable(errLater, w.again)
	case time.Now().Before(w.missing):
		return bus.RetryAfter(errLater, w.again)
	case n.bad:
		return bus.Permanent(errors.New("bad"))
	case n.fails > 0:
		n.fails--
		switch w.rng.IntN(5) {
		case 0:
			n.retry = time.Now().Add(5 * time.Second)
			return bus.RetryAfter(errLater, 5*time.Second)
		case 1:
			return bus.Unavailable(errLater, time.Second)
		}
		return errLater
	}
	if w.plan.guarantee == router.ExactlyOnce {
		return bus.Emit(ctx, "outputs", &bus.Message{ID: "output of " + m.ID, Key: m.Key, Subject: m.ID}, bus.WithCause(m))
	}
	return nil
}

// output notes an output that was published with a settlement. A replay makes a second message of
// one that is poisoned and not settled.
func (w *world) output(m *bus.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.messages[m.Subject]
	if n.outputs++; n.outputs > 1 && !n.replayed {
		w.errorf("%s has %d outputs", m.Subject, n.outputs)
	}
}

func (w *world) end(m *bus.Message, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.messages[m.ID]
	delete(w.running, n.key)
	w.say("end %s: %v", m.ID, err)
	if err == nil {
		if n.handled++; n.handled > 1 && !n.replayed && w.plan.guarantee == router.AtMostOnce {
			w.errorf("%s is handled %d times", m.ID, n.handled)
		}
	} else if _, away := bus.UnavailableFor(err); !away {
		n.failed++
	}
}

// poisoned is told of each entry that was put.
func (w *world) poisoned(e driver.PoisonEntry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say("poisoned %s at %d/%d, waits %v", e.Message.ID, e.Lane, e.Position, e.Waits)
	w.messages[e.Message.ID].poisoned = true
}
