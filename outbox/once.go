package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/millrace-go/millrace/bus"
)

// Once makes a handler whose effect happens once for each message, however often a broker delivers it. h is called in a
// transaction that also records the message's id for its group and topic, and holds what h emits ([bus.Emit]) as rows of
// the outbox: all of it commits together, before the message is settled, or nothing does. A message that is recorded
// already is settled without calling h. OnSuccess, as ever, waits for the whole handler.
//
// h must write through tx, and must not commit it, nor go on after an error of a statement that ended the transaction (a
// deadlock on MySQL). An error of h rolls back, and goes through the failure policy; so does a serialization failure, which two
// deliveries of a message at the same time have if the transactions are stricter than read committed.
//
// A message that was published without an id, on a broker where it has no place that lasts ([bus.IsTransientID]), is refused
// for good: nobody could tell when it comes again.
func Once[Tx, T any](o *Outbox, begin Transactor[Tx], h func(ctx context.Context, tx Tx, event T) error) bus.Handler {
	return onceHandler{bus.Typed(func(ctx context.Context, event T) error {
		d := bus.DeliveryFrom(ctx)
		if err := checkID(d.ID); err != nil {
			return err
		}
		err, _ := once(ctx, o, begin, d, []string{d.ID}, func(ctx context.Context, tx Tx, _ []bool) error { return h(ctx, tx, event) })
		return err
	})}
}

// onceHandler tells a router that was asked for exactly once that it is.
type onceHandler struct{ bus.Handler }

func (h onceHandler) EventTypes() []string { return h.Handler.(bus.EventTyper).EventTypes() }
func (onceHandler) Idempotent()            {}

// OnceBatch is [Once] for batches: one transaction, and one statement that records all ids. h is given the messages that are
// not recorded yet. If it fails with a transaction of several messages, the others must not suffer for one of them: those
// that [bus.Each] reports as good are handled again without the bad ones; after any other error each message is handled
// again by itself. So h may be called more than once, with a transaction that starts afresh.
func OnceBatch[Tx, T any](o *Outbox, begin Transactor[Tx], h func(ctx context.Context, tx Tx, events []bus.Event[T]) error) bus.BatchHandler {
	run := func(ctx context.Context, events []bus.Event[T], h func(context.Context, Tx, []bool) error) (error, bool) {
		ids := make([]string, len(events))
		for i := range events {
			ids[i] = events[i].ID
		}
		return once(ctx, o, begin, bus.DeliveryFrom(ctx), ids, h)
	}
	return onceBatchHandler{bus.TypedBatch(func(ctx context.Context, events []bus.Event[T]) error {
		errs := make([]error, len(events))
		var good []bus.Event[T]
		var places []int
		for i, e := range events {
			if errs[i] = checkID(e.ID); errs[i] == nil {
				good, places = append(good, e), append(places, i)
			}
		}
		if len(good) == len(events) {
			return onceBatch(ctx, events, h, run)
		}
		if len(good) > 0 {
			for j, err := range bus.Outcomes(onceBatch(ctx, good, h, run), len(good)) {
				errs[places[j]] = err
			}
		}
		return bus.Each(errs)
	})}
}

// checkID refuses the ids by which an inbox cannot know a message again, or not on every database alike.
func checkID(id string) error {
	var why string
	switch {
	case id == "" || bus.IsTransientID(id):
		why = "it was published without one, so nobody can tell when it comes again: have its publisher set one"
	case len(id) > maxID:
		why = fmt.Sprintf("it has %d bytes: want at most %d", len(id), maxID)
	case !utf8.ValidString(id) || strings.IndexByte(id, 0) >= 0:
		why = "want UTF-8 without NUL"
	default:
		return nil
	}
	return bus.Permanent(fmt.Errorf("outbox: once: %w: the message's id is %.60q: %s", bus.ErrInvalid, id, why))
}

const maxID = 255 // bytes, as in the table

type onceBatchHandler struct{ bus.BatchHandler }

func (h onceBatchHandler) EventTypes() []string { return h.BatchHandler.(bus.EventTyper).EventTypes() }
func (onceBatchHandler) Idempotent()            {}

// onceBatch handles a batch by run, which calls a function in a transaction that remembers the events, as once does.
func onceBatch[Tx, T any](ctx context.Context, events []bus.Event[T], h func(context.Context, Tx, []bus.Event[T]) error,
	run func(ctx context.Context, events []bus.Event[T], h func(ctx context.Context, tx Tx, repeat []bool) error) (err error, blame bool),
) error {
	var called []int // places of the events that h was given
	err, blame := run(ctx, events, func(ctx context.Context, tx Tx, repeat []bool) error {
		called = called[:0]
		fresh := make([]bus.Event[T], 0, len(events))
		for i := range events {
			if repeat == nil || !repeat[i] {
				called, fresh = append(called, i), append(fresh, events[i])
			}
		}
		return h(ctx, tx, fresh)
	})
	if !blame || len(events) == 1 || ctx.Err() != nil {
		return err
	}
	errs := make([]error, len(events))
	each, ok := errors.AsType[*bus.BatchError](err)
	if !ok || len(each.Errs) != len(called) || bus.Each(each.Errs) == nil {
		for i := range events {
			if errs[i] = context.Cause(ctx); errs[i] != nil {
				continue
			}
			err, blame := run(ctx, events[i:i+1], func(ctx context.Context, tx Tx, _ []bool) error { return h(ctx, tx, events[i:i+1]) })
			if errs[i] = bus.Outcomes(err, 1)[0]; err != nil && !blame { // of the database, which may be away: the others need not find out
				for j := i + 1; j < len(events); j++ {
					errs[j] = err
				}
				break
			}
		}
		return bus.Each(errs)
	}
	var good []bus.Event[T]
	var places []int
	for j, i := range called {
		if errs[i] = each.Errs[j]; errs[i] == nil {
			good, places = append(good, events[i]), append(places, i)
		}
	}
	if len(good) > 0 {
		for j, err := range bus.Outcomes(onceBatch(ctx, good, h, run), len(good)) {
			errs[places[j]] = err
		}
	}
	return bus.Each(errs)
}

// errRepeats ends a transaction that was begun in the hope that none of several messages is a repeat.
var errRepeats = errors.New("some messages were handled before")

// once runs h in a transaction that records the ids. repeat tells which of them were recorded before; nil is none. blame:
// the error is of h or of what it emitted, and not of the database.
func once[Tx any](ctx context.Context, o *Outbox, begin Transactor[Tx], d bus.Delivery, ids []string, h func(ctx context.Context, tx Tx, repeat []bool) error) (err error, blame bool) { //nolint:revive // the error is what it returns, the other explains it
	emitted := false
	attempt := func(oneByOne bool) error {
		return transact(ctx, begin, func(tx Tx, x Execer) error {
			repeat, err := o.record(ctx, x, d.Group, d.Topic, ids, oneByOne)
			if err != nil || repeat != nil && !slices.Contains(repeat, false) {
				return err
			}
			w := &writer{outbox: o, tx: x}
			inner := bus.NewInnerHandling(ctx, bus.New(w, o.options...))
			defer inner.Discard()
			if err = h(inner, tx, repeat); err == nil {
				err = inner.Flush(inner, nil)
			}
			blame = err != nil
			emitted = w.wrote
			return err
		})
	}
	if err = attempt(len(ids) == 1); errors.Is(err, errRepeats) {
		err = attempt(true)
	}
	if err != nil {
		return err, blame
	}
	if emitted {
		announce(ctx, o, begin)
	}
	if o.pruneDue() {
		// What is left is deleted the next time, and the message is not worse for it.
		_ = begin(ctx, func(_ Tx, x Execer) error {
			n, err := o.pruneInbox(ctx, x)
			if err == nil && n == pruneRows {
				o.pruneAgain()
			}
			return err
		})
	}
	return nil, false
}
