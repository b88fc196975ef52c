package driver

import (
	"context"
	"database/sql"
	"errors"

	"github.com/millrace-go/millrace/bus"
)

// TransactionalSource is a [bus.Source] that can settle messages and publish their outputs in one
// transaction. Readers see all of it or nothing; after a crash it has happened once or not at all.
// Its driver sets [bus.Capabilities.Transactions]; a router asks for it with
// [bus.Subscription.Transactional]. Then Park is a transaction, too.
type TransactionalSource interface {
	bus.Source

	// SettleWith settles deliveries, and publishes the outputs of each in their order, to topics of
	// the same bus. It has one caller at a time. An error made by [bus.PerMessage] gives the
	// outcome of each settlement:
	//
	//   - nil: it is done.
	//   - wraps ErrStale: the ownership has ended; the outputs are not published.
	//   - any other: the broker refused its outputs; no part of this settlement took effect.
	//
	// After any other error no settlement took effect, and the router calls again.
	SettleWith(ctx context.Context, ss []Settlement) error
}

// Settlement is a delivery that is done, and its outputs.
type Settlement struct {
	Token   bus.Token
	Outputs []Output
}

// Output is a message to publish.
type Output struct {
	Topic   string
	Message *bus.Message
}

// Execer is a database transaction; the code that began it also ends it. *sql.Tx and wrappers of
// database/sql implement it. For pgx.Tx use package outbox/pgxoutbox.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// RowScanner is an optional ability of an [Execer] that has no QueryRowContext as *sql.Tx has it. A
// driver that can read in the transaction settles faster.
type RowScanner interface {
	// ScanRow runs a query that returns at most one row, and scans the row into dest. Without a row
	// the error wraps [sql.ErrNoRows].
	ScanRow(ctx context.Context, query string, args []any, dest ...any) error
}

// JoiningSource is a [TransactionalSource] of a driver that is a [TransactionHost]. It can settle
// within a transaction in the driver's database that the caller has begun and will end.
type JoiningSource interface {
	TransactionalSource

	// SettleIn settles deliveries in tx, and publishes outputs in their order. Call it last, right
	// before tx ends: from here on other writers wait. It may be called concurrently.
	//
	// After an error the caller must roll tx back. An error made by [bus.PerMessage] is by token.
	// It wraps ErrStale for each message that cannot be settled: its ownership has ended, or it is
	// settled or parked since. It wraps ErrNotFound, too, for a message that was withdrawn from
	// parking.
	//
	// end is never nil. Call it once tx has ended: with nil after a commit, otherwise with the
	// error of the commit or of SettleIn. It returns the outcome of the settlement:
	//
	//   - nil: it is done. It is also nil where the commit's answer was lost and the commit had
	//     happened.
	//   - ErrAgain: it did not take effect and the obstacle is gone; run the whole transaction
	//     again.
	//   - any other error: it did not take effect, or its ownership has ended.
	SettleIn(ctx context.Context, tx Execer, tokens []bus.Token, outputs []Output) (end func(err error) error, err error)
}

// ErrAgain is wrapped where the obstacle to a transaction is gone: run the transaction again at
// once.
var ErrAgain = errors.New("run the transaction again")

// TransactionHost is an optional ability of a driver, found with [bus.As]. The driver keeps its
// messages in a database where handlers can have transactions of their own. Its sources are
// [JoiningSource].
type TransactionHost interface {
	// CheckTransaction returns an error if tx is not a transaction in the driver's database, or if
	// a settlement cannot join it. It may change rows: roll tx back afterwards.
	CheckTransaction(ctx context.Context, tx Execer) error
}

// Joining is an optional part of a [bus.Handler] that settles its messages in its own transaction,
// by [Joiner]. A router calls CheckJoining before it subscribes. It refuses the handler where the
// bus is not in a database.
type Joining interface {
	bus.Handler
	// CheckJoining begins a transaction as the handler does, and returns host's verdict on it. An
	// error of the host is final. Errors of beginning are not: the router calls again if they are
	// retryable.
	CheckJoining(ctx context.Context, host TransactionHost) error
}
