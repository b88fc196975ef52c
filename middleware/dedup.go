package middleware

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// DedupStore remembers handled messages for [Deduplicate]. It must be safe for concurrent use.
// [DedupMemory] implements it, and so does package dedupsql. A scope is a group's part of a topic,
// "group/topic": the same id in two scopes is two ids.
type DedupStore interface {
	// Seen reports for each id whether the scope remembers it.
	Seen(ctx context.Context, scope string, ids []string) ([]bool, error)
	// Remember stores ids of messages handled in the scope. An id that is there already is no
	// error.
	Remember(ctx context.Context, scope string, ids []string) error
}

// Deduplicate settles a message unhandled if its group has handled the message's id before, from
// the same topic. key makes the id; a nil key takes the message's own. A message is always handled
// if its id is "", or names a delivery and no message ([driver.IsTransientID]).
//
// While the store does not answer, a call is [bus.Unavailable]: no try is counted, and the router
// pauses until the store answers. If the store cannot remember a success, the message is settled
// nonetheless, and the router logs the reason. The effect is there and the outputs are published,
// so a failure would make the very repeat that Deduplicate should prevent. Only a later copy of the
// message would be handled again.
//
// Deduplicate remembers an id when the message has succeeded: after the handler, with all its
// middleware, and after its emitted messages are published. So a failure is tried again. A crash in
// between makes a repeat, as without Deduplicate: it makes repeats rare, not impossible. An ignored
// ([bus.Ignore]) or poisoned message is not remembered, so that it can be replayed.
//
// While this process handles a message, other messages with its id wait for its end, within their
// context, and keep their workers. If it succeeds they are settled unhandled; if not, the next one
// is handled. If the context of a waiting call ends, the call is postponed for a moment
// ([bus.Postpone]).
//
// A Retry outside may repeat a message while other messages of its batch have succeeded. Such a
// repeat is postponed without a wait: two batches could wait for each other for ever.
//
// Different processes handle equal ids at the same time, and remember them as one. Repeats of a
// key's message go to the process that has the key's lane. So only messages without a key, and one
// id published under two keys, can meet in this way.
//
// Put it outside of Throttle and of a breaker, for which a repeat is no work, and inside of Filter
// and Validate. Any order with Retry, Timeout, Recover, Ignore and Poison is right. A call of one
// message that middleware outside repeats after a success (as Chaos does) counts as a repeat.
func Deduplicate(store DedupStore, key func(*bus.Message) string) bus.Middleware {
	if store == nil {
		return invalidf("Deduplicate: the store is nil")
	}
	if c, ok := store.(interface{ Check() error }); ok {
		if err := c.Check(); err != nil {
			return Invalid(err)
		}
	}
	if key == nil {
		key = func(m *bus.Message) string { return m.ID }
	}
	d := &deduplicator{store: store, key: key, now: map[inFlight]*mark{}}
	return func(next bus.Handler) bus.Handler {
		single := bus.HandlerFunc(func(ctx context.Context, m *bus.Message) error {
			return d.handle(ctx, []*bus.Message{m}, true, func([]*bus.Message) error { return next.Handle(ctx, m) })[0]
		})
		batch, ok := next.(bus.BatchHandler)
		if !ok {
			return single
		}
		return dedupBatch{single, d, batch}
	}
}

type dedupBatch struct {
	bus.HandlerFunc
	*deduplicator
	next bus.BatchHandler
}

// HandleBatch implements bus.BatchHandler.
func (b dedupBatch) HandleBatch(ctx context.Context, ms []*bus.Message) error {
	return bus.PerMessage(b.handle(ctx, ms, false, func(kept []*bus.Message) error { return b.next.HandleBatch(ctx, kept) }))
}

type deduplicator struct {
	store DedupStore
	key   func(*bus.Message) string

	mu  sync.Mutex
	now map[inFlight]*mark // ids being handled
}

type inFlight struct{ scope, id string }

// mark keeps others away from an id while one message of it is handled.
type mark struct {
	msg  *bus.Message
	call *bus.Message  // the message in the context of the whole call
	kept bool          // to the end of the whole call: msg has succeeded
	done chan struct{} // closed when the mark is taken away
}

// claim is a message of this call; all messages with its id share its handling.
type claim struct {
	id   string
	msg  *bus.Message
	at   []int // the places in the call of the messages with the id
	mark *mark // nil: the message is not handled, or has no id
	seen bool
	err  error // it is not its turn
}

// handle handles the messages that are no repeats, and returns an outcome for each message.
func (d *deduplicator) handle(ctx context.Context, ms []*bus.Message, single bool, next func([]*bus.Message) error) []error {
	delivery := bus.DeliveryFrom(ctx)
	scope := delivery.Group + "/" + delivery.Topic // neither has a slash
	if delivery.Group == "" {
		return fill(make([]error, len(ms)), errors.New("deduplicate: the context is not that of a handler, which knows its group"))
	}
	claims := d.claims(ms)
	ended := false
	defer func() {
		if !ended { // an error, a panic or a Goexit
			d.release(scope, claims)
		}
	}()
	if err := d.look(ctx, scope, claims, single); err != nil {
		return fill(make([]error, len(ms)), err)
	}
	var kept []*bus.Message
	var of []*claim
	errs := make([]error, len(ms))
	for _, c := range claims {
		switch {
		case c.err != nil:
			for _, place := range c.at {
				errs[place] = c.err
			}
		case !c.seen:
			kept, of = append(kept, c.msg), append(of, c)
		}
	}
	if len(kept) == 0 {
		return errs
	}
	outcomes := bus.Outcomes(next(kept), len(kept))
	var handled, failed []*claim
	for i, c := range of {
		for _, place := range c.at {
			errs[place] = outcomes[i]
		}
		if outcomes[i] == nil && c.mark != nil {
			handled = append(handled, c)
		} else {
			failed = append(failed, c)
		}
	}
	d.release(scope, failed)
	d.keep(handled)
	ended = true
	if len(handled) == 0 {
		return errs
	}
	if err := bus.OnEnd(ctx, func(ctx context.Context, succeeded func(*bus.Message) bool) error {
		return d.finish(ctx, scope, handled, succeeded)
	}); err != nil {
		d.release(scope, handled)
		for i := range errs {
			if errs[i] == nil {
				errs[i] = err
			}
		}
	}
	return errs
}

// claims finds the ids of a call, in the order of its messages.
func (d *deduplicator) claims(ms []*bus.Message) []*claim {
	if len(ms) == 1 {
		return []*claim{{id: d.id(ms[0]), msg: ms[0], at: []int{0}}}
	}
	claims := make([]*claim, 0, len(ms))
	byID := map[string]*claim{}
	for i, m := range ms {
		id := d.id(m)
		if c := byID[id]; c != nil && id != "" {
			c.at = append(c.at, i)
			continue
		}
		c := &claim{id: id, msg: m, at: []int{i}}
		byID[id] = c
		claims = append(claims, c)
	}
	return claims
}

// id identifies a message; it is "" if a repeat cannot be recognised.
func (d *deduplicator) id(m *bus.Message) string {
	id := d.key(m)
	if driver.IsTransientID(id) {
		return ""
	}
	return id
}

// look marks the ids, and finds those seen before. Every call marks ids in one order, and a call
// with marks of an earlier call does not wait. So batches cannot wait for each other.
func (d *deduplicator) look(ctx context.Context, scope string, claims []*claim, single bool) error {
	sorted := slices.SortedFunc(slices.Values(claims), func(a, b *claim) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	var marked []*claim
	var ids []string
	for _, c := range sorted {
		if c.id == "" {
			continue
		}
		if err := d.mark(ctx, scope, c, single); err != nil {
			return err
		}
		if c.mark != nil {
			marked, ids = append(marked, c), append(ids, c.id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	var seen []bool
	err := guard(func() (err error) {
		seen, err = d.store.Seen(ctx, scope, ids)
		return err
	})
	if err == nil && len(seen) != len(ids) {
		err = fmt.Errorf("the store gave %d answers for %d ids", len(seen), len(ids))
	}
	if err != nil {
		return notBegun(fmt.Errorf("deduplicate: the handler was not called, because the store did not answer: %w", err), storeAway)
	}
	for i, c := range marked {
		if c.seen = seen[i]; c.seen {
			d.release(scope, marked[i:i+1])
		}
	}
	return nil
}

// mark waits until no other call handles the id, and marks it.
func (d *deduplicator) mark(ctx context.Context, scope string, c *claim, single bool) error {
	call := bus.DeliveryFrom(ctx).Message
	for {
		d.mu.Lock()
		other := d.now[inFlight{scope, c.id}]
		switch {
		case other == nil:
			c.mark = &mark{msg: c.msg, call: call, done: make(chan struct{})}
			d.now[inFlight{scope, c.id}] = c.mark
			d.mu.Unlock()
			return nil
		case other.msg == c.msg && single: // an earlier call with this very message has succeeded
			c.seen = true
			d.mu.Unlock()
			return nil
		case other.msg == c.msg: // or it may have been taken back: Savepoint does not tell of a batch's messages
			c.mark = other
			d.mu.Unlock()
			return nil
		case d.keeps(call):
			c.err = notItsTurn(fmt.Errorf("deduplicate: the handler was not called: another message with id %q is being handled, and messages of this batch have succeeded already", c.id), shortly)
			d.mu.Unlock()
			return nil
		}
		d.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return notItsTurn(fmt.Errorf("deduplicate: the handler was not called: another message with id %q was being handled until the context ended: %w", c.id, context.Cause(ctx)), shortly)
		}
	}
}

// keep makes the marks stay to the end of the whole call.
func (d *deduplicator) keep(claims []*claim) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range claims {
		c.mark.kept = true
	}
}

// keeps reports whether an earlier part of the call has left marks to its end.
func (d *deduplicator) keeps(call *bus.Message) bool {
	for _, m := range d.now {
		if m.kept && m.call == call {
			return true
		}
	}
	return false
}

// finish remembers the successes, and frees the ids for other calls.
func (d *deduplicator) finish(ctx context.Context, scope string, claims []*claim, succeeded func(*bus.Message) bool) error {
	defer d.release(scope, claims)
	ids := make([]string, 0, len(claims))
	for _, c := range claims {
		if succeeded(c.msg) {
			ids = append(ids, c.id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if err := guard(func() error { return d.store.Remember(ctx, scope, ids) }); err != nil {
		return bus.Ignore(fmt.Errorf("deduplicate: the message was handled, and its id could not be remembered, so another copy would be handled again: %w", err))
	}
	return nil
}

// guard turns a panic in the store into an error: no router would catch a panic after the handler.
func guard(f func() error) (err error) {
	defer recovered(&err)
	return f()
}

// storeAway is the pause before the next question to a store that did not answer.
const storeAway = time.Second

func (d *deduplicator) release(scope string, claims []*claim) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range claims {
		if c.mark != nil && d.now[inFlight{scope, c.id}] == c.mark {
			delete(d.now, inFlight{scope, c.id})
			close(c.mark.done)
		}
	}
}

func fill(errs []error, err error) []error {
	for i := range errs {
		errs[i] = err
	}
	return errs
}
