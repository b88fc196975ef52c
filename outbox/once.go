package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-go/millrace/bus"
)

// Once makes a handler with an effect that happens once for each message, however often a broker
// delivers it. It calls h in a transaction that also records the message's id for its group and
// topic. The transaction holds h's emitted messages ([bus.Emit]) as rows of the outbox, too. All of
// it commits together, before the message is settled, or nothing does. A message recorded before is
// settled without calling h. OnSuccess, as ever, waits for the whole handler.
//
// h must write through tx, and must not commit it. An error of h rolls back, and goes through the
// failure policy. After a conflict with other transactions, Once first runs the transaction again a
// few times, at once. Conflicts are a deadlock, a serialization failure, and too long a wait for a
// lock. So h may be called more than once for one try of the policy.
//
// Note: h must return the errors of its statements. On MySQL a deadlock has undone the transaction
// and the record of the message with it. If h hides the error, its later statements commit by
// themselves, and the message is settled.
//
// A message fails for good if its id cannot be remembered: it changes with each delivery
// ([driver.IsTransientID]), or no bus would publish it.
func Once[Tx, T any](o *Outbox, begin Transactor[Tx], h func(ctx context.Context, tx Tx, event T) error) bus.Handler {
	return onceHandler{missing(o == nil, begin == nil, h == nil), bus.Typed(func(ctx context.Context, event T) error {
		m := bus.DeliveryFrom(ctx).Message
		if err := checkID(m.ID); err != nil {
			return err
		}
		err, _ := once(ctx, o, begin, []*bus.Message{m}, func(ctx context.Context, tx Tx, _ []bool) error { return h(ctx, tx, event) })
		return err
	}).(typedHandler)}
}

// typedHandler is what bus.Typed returns.
type typedHandler interface {
	bus.Handler
	bus.EventTyper
	bus.Checker
}

// onceHandler tells a router that was asked for exactly once that the handler provides it.
type onceHandler struct {
	missing error
	typedHandler
}

func (h onceHandler) Check() error { return errors.Join(h.missing, h.typedHandler.Check()) }
func (onceHandler) Idempotent()    {}

// missing reports the arguments of a handler's constructor that are nil.
func missing(outbox, begin, h bool) error {
	var names []string
	for name, is := range map[string]bool{"the outbox": outbox, "begin": begin, "h": h} {
		if is {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return fmt.Errorf("%w: nil is no argument of a handler of package outbox: %s", bus.ErrInvalid, strings.Join(names, ", "))
}

// OnceBatch is [Once] for batches: one transaction, and one statement that records all ids. h gets
// the messages that are not recorded yet. If it fails with several messages in the transaction, the
// others must not suffer:
//
//   - After an error of [bus.PerMessage], the good messages are handled again without the bad ones.
//   - After any other error, each message is handled again by itself.
//
// So h may be called more than once, each time with a new transaction.
func OnceBatch[Tx, T any](o *Outbox, begin Transactor[Tx], h func(ctx context.Context, tx Tx, events []bus.Event[T]) error) bus.BatchHandler {
	return onceBatchHandler{missing(o == nil, begin == nil, h == nil), bus.TypedBatch(func(ctx context.Context, events []bus.Event[T]) error {
		return withIDs(events, func(events []bus.Event[T]) error {
			err, _ := onceBatch(ctx, events, h, func(ctx context.Context, events []bus.Event[T], h func(context.Context, Tx, []bool) error) (error, bool) {
				return once(ctx, o, begin, messages(events), h)
			})
			return err
		})
	}).(typedBatchHandler)}
}

// typedBatchHandler is what bus.TypedBatch returns.
type typedBatchHandler interface {
	bus.BatchHandler
	bus.EventTyper
	bus.Checker
}

type onceBatchHandler struct {
	missing error
	typedBatchHandler
}

func (h onceBatchHandler) Check() error { return errors.Join(h.missing, h.typedBatchHandler.Check()) }
func (onceBatchHandler) Idempotent()    {}

func messages[T any](events []bus.Event[T]) []*bus.Message {
	msgs := make([]*bus.Message, len(events))
	for i := range events {
		msgs[i] = events[i].Message
	}
	return msgs
}

// withIDs calls run with the events that have an id fit to remember. Each other event fails by
// itself.
func withIDs[T any](events []bus.Event[T], run func(events []bus.Event[T]) error) error {
	errs := make([]error, len(events))
	good := make([]bus.Event[T], 0, len(events))
	places := make([]int, 0, len(events))
	for i := range events {
		if errs[i] = checkID(events[i].ID); errs[i] == nil {
			good, places = append(good, events[i]), append(places, i)
		}
	}
	if len(good) == len(events) {
		return run(events)
	}
	if len(good) > 0 {
		for j, err := range bus.Outcomes(run(good), len(good)) {
			errs[places[j]] = err
		}
	}
	return bus.PerMessage(errs)
}

// onceBatch handles a batch by run, which calls a function in a transaction that remembers the
// events, as once does.
func onceBatch[Tx, T any](ctx context.Context, events []bus.Event[T], h func(context.Context, Tx, []bus.Event[T]) error, //nolint:revive // as once
	run func(ctx context.Context, events []bus.Event[T], h func(ctx context.Context, tx Tx, repeat []bool) error) (err error, blame bool),
) (err error, blame bool) {
	var called []int // places of the events passed to h
	err, blame = run(ctx, events, func(ctx context.Context, tx Tx, repeat []bool) error {
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
		return err, blame
	}
	errs := make([]error, len(events))
	each, ok := errors.AsType[*bus.BatchError](err)
	if !ok || len(each.Errs) != len(called) || bus.PerMessage(each.Errs) == nil {
		var stop error // a database's error would hit the other messages too, each after a while
		for i := range events {
			if stop == nil {
				stop = context.Cause(ctx)
			}
			if errs[i] = stop; stop != nil {
				continue
			}
			err, blame := onceBatch(ctx, events[i:i+1], h, run)
			if errs[i] = bus.Outcomes(err, 1)[0]; !blame {
				stop = err
			}
		}
		return bus.PerMessage(errs), true
	}
	var good []bus.Event[T]
	var places []int
	for j, i := range called {
		if errs[i] = each.Errs[j]; errs[i] == nil {
			good, places = append(good, events[i]), append(places, i)
		}
	}
	if len(good) > 0 {
		err, _ := onceBatch(ctx, good, h, run)
		for j, err := range bus.Outcomes(err, len(good)) {
			errs[places[j]] = err
		}
	}
	return bus.PerMessage(errs), true
}

// errRepeats ends a transaction that was begun in the hope that none of several messages is a
// repeat.
var errRepeats = errors.New("some messages were handled before")

// once runs h in a transaction that records the messages. repeat names the messages recorded
// before; nil is none. blame: the error may be h's, because it came after the call of h. An example
// is the commit, which checks some constraints.
func once[Tx any](ctx context.Context, o *Outbox, begin Transactor[Tx], msgs []*bus.Message, h func(ctx context.Context, tx Tx, repeat []bool) error) (err error, blame bool) { //nolint:revive // the error is what it returns, the other explains it
	d := bus.DeliveryFrom(ctx)
	ids := make([]string, len(msgs))
	for i, m := range msgs {
		ids[i] = m.ID
	}
	emitted := false
	attempt := func(oneByOne bool) error {
		return begin.run(ctx, func(tx Tx, x Execer) error {
			blame = false
			repeat, err := o.record(ctx, x, d.Group, d.Topic, ids, oneByOne)
			if err != nil || repeat != nil && !slices.Contains(repeat, false) {
				return err
			}
			w := &writer{outbox: o, tx: x}
			inner := engine.NewInner(ctx, bus.New(w, o.options...))
			defer engine.Discard(inner)
			blame = true
			if err = h(inner, tx, repeat); err == nil {
				err = engine.Flush(inner, inner, nil)
			}
			emitted = w.wrote
			return err
		})
	}
	for again := (reruns{}); ; {
		undo := bus.Savepoint(ctx)
		if err = attempt(len(ids) == 1); errors.Is(err, errRepeats) {
			err = attempt(true)
		}
		if err == nil {
			break
		}
		if !again.after(ctx, err) {
			return err, blame
		}
		undo(msgs...)
	}
	if emitted {
		o.committed(ctx, func(ctx context.Context, channel string) error {
			return begin(ctx, func(_ Tx, x Execer) error { return o.notify(ctx, x, channel) })
		})
	}
	if o.pruneDue() {
		// The next call deletes the rest, and the message is not affected.
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
