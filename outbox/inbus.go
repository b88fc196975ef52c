package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// OnceInBus is [Once] for a bus in the same database as begin's transactions, on PostgreSQL,
// MySQL/MariaDB or SQLite. The effect, the settlement of the message and h's emitted messages
// commit in one transaction. It needs no [Outbox]: no inbox, no outbox, no relay and no tables of
// their own.
//
// h runs first. The last statements before the commit settle the message and append the outputs to
// the bus's log; so a slow h holds nobody up. If the lane went to another member while h ran, the
// transaction rolls back. h is called again where an output's topic must be created, and after a
// conflict with other transactions as by [Once]. It must write through tx and not commit it, and
// return the errors of its statements.
//
// Unlike [Once], it does not look at ids: publishing a message twice makes two messages.
//
// On any other bus, or in another database, the router fails at its start. On PostgreSQL the
// transactions must be read committed, which is the default; on SQLite begin them as immediate.
func OnceInBus[Tx, T any](begin Transactor[Tx], h func(ctx context.Context, tx Tx, event T) error) bus.Handler {
	return inBusHandler{onceHandler{missing(false, begin == nil, h == nil), bus.Typed(func(ctx context.Context, event T) error {
		done := []*bus.Message{bus.DeliveryFrom(ctx).Message}
		err, _ := onceInBus(ctx, begin, done, func(ctx context.Context, tx Tx, _ []bool) error { return h(ctx, tx, event) })
		return err
	}).(typedHandler)}, joinCheck(begin)}
}

// OnceBatchInBus is [OnceInBus] for batches, as [OnceBatch] is [Once] for batches: one transaction
// for all messages.
func OnceBatchInBus[Tx, T any](begin Transactor[Tx], h func(ctx context.Context, tx Tx, events []bus.Event[T]) error) bus.BatchHandler {
	return inBusBatchHandler{onceBatchHandler{missing(false, begin == nil, h == nil), bus.TypedBatch(func(ctx context.Context, events []bus.Event[T]) error {
		err, _ := onceBatch(ctx, events, h, func(ctx context.Context, events []bus.Event[T], h func(context.Context, Tx, []bool) error) (error, bool) {
			return onceInBus(ctx, begin, messages(events), h)
		})
		return err
	}).(typedBatchHandler)}, joinCheck(begin)}
}

type inBusHandler struct {
	onceHandler
	joinChecker
}

type inBusBatchHandler struct {
	onceBatchHandler
	joinChecker
}

// joinChecker makes a handler driver.Joining.
type joinChecker func(ctx context.Context, host driver.TransactionHost) error

// CheckJoining implements driver.Joining.
func (c joinChecker) CheckJoining(ctx context.Context, host driver.TransactionHost) error {
	return c(ctx, host)
}

// hostTries is the number of checks of a transaction before a refusal counts: a connection may
// break, a file be locked.
const hostTries = 3

var errChecked = errors.New("the check is over")

// joinCheck checks whether begin's transactions are in the bus's database. It rolls its changes
// back.
func joinCheck[Tx any](begin Transactor[Tx]) joinChecker {
	return func(ctx context.Context, host driver.TransactionHost) error {
		for tries := 1; ; tries++ {
			var verdict error
			begun := false
			err := begin(ctx, func(_ Tx, x Execer) error {
				begun = true
				verdict = host.CheckTransaction(ctx, x)
				return errChecked
			})
			if !begun {
				return fmt.Errorf("outbox: begin a transaction: %w", err)
			}
			if verdict == nil || tries == hostTries {
				return verdict
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// onceInBus runs h in a transaction that settles the messages. repeat names the messages settled
// already, because middleware called the handler again; nil is none.
func onceInBus[Tx any](ctx context.Context, begin Transactor[Tx], done []*bus.Message, h func(ctx context.Context, tx Tx, repeat []bool) error) (err error, blame bool) { //nolint:revive // as once
	j := driver.JoinerFrom(ctx)
	if j == nil {
		return bus.Permanent(fmt.Errorf("outbox: once in the bus: %w: no router called the handler", bus.ErrUnsupported)), true
	}
	var repeat []bool
	fresh := make([]*bus.Message, 0, len(done))
	for i, m := range done {
		if !j.Settled(m) {
			fresh = append(fresh, m)
			continue
		}
		if repeat == nil {
			repeat = make([]bool, len(done))
		}
		repeat[i] = true
	}
	if len(fresh) == 0 {
		return nil, false
	}
	for again := (reruns{}); ; {
		undo := bus.Savepoint(ctx)
		err, blame = inTransaction(ctx, begin, j, fresh, func(ctx context.Context, tx Tx) error { return h(ctx, tx, repeat) })
		if !(errors.Is(err, driver.ErrAgain) && ctx.Err() == nil || again.after(ctx, err)) {
			return err, blame
		}
		undo(fresh...)
	}
}

var (
	errTwice = errors.New("outbox: the transactor called its function twice")
	errCut   = errors.New("outbox: the transactor did not return")
)

func inTransaction[Tx any](ctx context.Context, begin Transactor[Tx], j *driver.Joiner, done []*bus.Message, h func(ctx context.Context, tx Tx) error) (err error, blame bool) { //nolint:revive // as once
	var end func(error) error
	cause := errCut // unless it returns, and does not panic
	defer func() {
		if end != nil {
			err = end(cause)
		}
	}()
	cause = begin.run(ctx, func(tx Tx, x Execer) (err error) {
		if end != nil {
			return errTwice
		}
		inner := engine.NewInner(ctx, nil)
		defer engine.Discard(inner)
		blame = true
		if err := h(inner, tx); err != nil {
			return err
		}
		var outputs []driver.Output
		_, err = engine.Take(inner, inner, nil, func(topic, _ string, m *bus.Message) {
			outputs = append(outputs, driver.Output{Topic: topic, Message: m})
		})
		if err != nil {
			return err
		}
		end, err = j.Settle(ctx, x, done, outputs)
		blame = err != nil && !bus.IsRetryable(err)
		return err
	})
	return cause, blame
}
