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

// DedupStore is where [Deduplicate] remembers what was handled. It must be safe for concurrent use. [DedupMemory] is one,
// package dedupsql has another. A scope is a group's part of a topic, "group/topic": the same id in two scopes is two ids.
type DedupStore interface {
	// Seen tells of each id whether the scope has it remembered.
	Seen(ctx context.Context, scope string, ids []string) ([]bool, error)
	// Remember keeps ids of messages that were handled in the scope. An id that is there already is no error.
	Remember(ctx context.Context, scope string, ids []string) error
}

// Deduplicate settles messages unhandled whose id their group has handled before, from the same topic. key makes the id;
// nil is the message's own. A message whose id is "", or one that names a delivery and no message ([driver.IsTransientID]),
// is always handled.
//
// While the store cannot be asked, a call is [bus.Unavailable]: no try is counted, and the router pauses until it can. If
// the store cannot remember what has succeeded, the message is settled nonetheless, and the router logs why: the effect is
// there and the outputs are published, so to fail it would make the very repeat that Deduplicate is to keep away. Only
// another copy of it that comes later would be handled again.
//
// An id is remembered when the message has succeeded: after the handler, with all its middleware, and after what it
// emitted was published. So a failure is tried again. A crash in between makes a repeat, as it does without
// Deduplicate: it makes repeats rare, not impossible. A message that was ignored ([bus.Ignore]) or poisoned is not
// remembered either, so that it can be replayed.
//
// While a message is being handled, others with its id that come to this process wait for its end, within their
// context, and keep their workers: if it succeeds they are settled unhandled, if not the next one is handled. A call whose
// context ends meanwhile is postponed for a moment ([bus.Postpone]). So is, without a wait, a repeat that a Retry outside
// brings while other messages of its batch have succeeded: two batches could wait for each other for ever. Different
// processes handle them at the same time, and remember both as one. Repeats of a key's message go to the process that has the key's lane; it
// is messages without a key, and publishers who publish one id under two keys, that can meet so.
//
// Put it outside of Throttle and of a breaker, for which a repeat is no work, and inside of Filter and Validate. In
// relation to Retry, Timeout, Recover, Ignore and Poison any order is right. A call of one message that middleware
// outside repeats after a success (Chaos does) is taken for a repeat.
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
	return bus.Each(b.handle(ctx, ms, false, func(kept []*bus.Message) error { return b.next.HandleBatch(ctx, kept) }))
}

type deduplicator struct {
	store DedupStore
	key   func(*bus.Message) string

	mu  sync.Mutex
	now map[inFlight]*mark // what is being handled
}

type inFlight struct{ scope, id string }

// mark keeps others away from an id while one message of it is handled.
type mark struct {
	msg  *bus.Message
	call *bus.Message  // what the context of the whole call has as its message
	kept bool          // to the end of the whole call: msg has succeeded
	done chan struct{} // closed when the mark is taken away
}

// claim is a message that is to be handled for all of its id in this call.
type claim struct {
	id   string
	msg  *bus.Message
	at   []int // the places in the call of the messages with the id
	mark *mark // nil: it is not to be handled, or has no id
	seen bool
	err  error // it is not its turn
}

// handle handles those messages that are no repeats, and returns an outcome for each.
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

// id is what a message is known by, "" if it cannot be known again.
func (d *deduplicator) id(m *bus.Message) string {
	id := d.key(m)
	if driver.IsTransientID(id) {
		return ""
	}
	return id
}

// look marks the ids, and finds out which of them were seen before. Ids are marked in one order by everybody, and whoever
// has marks of an earlier call does not wait: so batches cannot wait for each other.
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
		err = fmt.Errorf("the store answered %d times about %d ids", len(seen), len(ids))
	}
	if err != nil {
		return notBegun(fmt.Errorf("deduplicate: the handler was not called, because the store cannot be asked: %w", err), storeAway)
	}
	for i, c := range marked {
		if c.seen = seen[i]; c.seen {
			d.release(scope, marked[i:i+1])
		}
	}
	return nil
}

// mark waits until nobody else handles the id, and marks it.
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

// keep notes that the marks stay to the end of the whole call.
func (d *deduplicator) keep(claims []*claim) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range claims {
		c.mark.kept = true
	}
}

// keeps says whether an earlier part of the call has left marks to its end.
func (d *deduplicator) keeps(call *bus.Message) bool {
	for _, m := range d.now {
		if m.kept && m.call == call {
			return true
		}
	}
	return false
}

// finish remembers what has succeeded, and lets others have the ids.
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
		return bus.Ignore(fmt.Errorf("deduplicate: handled, but not remembered; another copy would be handled again: %w", err))
	}
	return nil
}

// guard makes an error of a panic in the store: it is called after the handler as well, where no router catches it.
func guard(f func() error) (err error) {
	defer recovered(&err)
	return f()
}

// storeAway is for how long a store is left in peace that could not be asked.
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
