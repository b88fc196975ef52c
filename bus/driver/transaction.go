package driver

import (
	"context"
	"database/sql"
	"errors"

	"github.com/millrace-go/millrace/bus"
)

// TransactionalSource is a [bus.Source] that can settle messages and publish what came of them in one transaction: readers
// see all of it or nothing, and after a crash it has happened once or not at all. A driver that has it says so with
// [bus.Capabilities.Transactions], and is asked for it with [bus.Subscription.Transactional]; then Park is a transaction, too.
type TransactionalSource interface {
	bus.Source

	// SettleWith settles deliveries, and publishes the outputs of each in their order, to topics of the same bus. It has one caller at a
	// time. An error made by [bus.Each] is the outcome by settlement: nil is done; one that wraps ErrStale is of an ownership
	// that ended, and its outputs are not published; for any other, its outputs are refused, and nothing of it was done. After
	// any other error none is done, and the router calls again.
	SettleWith(ctx context.Context, ss []Settlement) error
}

// Settlement is a delivery that is done, and what came of it.
type Settlement struct {
	Token   bus.Token
	Outputs []Output
}

// Output is a message to be published.
type Output struct {
	Topic   string
	Message *bus.Message
}

// Execer is a transaction of a database, begun by whoever ends it: *sql.Tx, and whatever else wraps database/sql. For pgx.Tx
// there is package outbox/pgxoutbox.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// JoiningSource is a [TransactionalSource] of a driver that is a [TransactionHost]: settlements can be a part of a
// transaction that somebody else has begun in the driver's database, and will end.
type JoiningSource interface {
	TransactionalSource

	// SettleIn settles deliveries in tx, and publishes outputs in their order. It must be the last that is done in tx
	// before its end, because from here on others wait for that. It may be called concurrently.
	//
	// After an error tx must be rolled back. One made by [bus.Each] is by token, and wraps ErrStale for each that cannot be
	// settled: its ownership has ended, or it is settled already, or parked since. It wraps ErrNotFound, too, for a message that was
	// withdrawn from where it was parked.
	//
	// end is never nil. It must be called once tx has ended: with nil if it was committed, and with the error of the
	// commit, or that of SettleIn, otherwise. It returns what became of the settlement. nil is done, also where the
	// commit's answer was lost and it turned out to have happened. ErrAgain: not done, and what was in the way is not any more: the
	// whole transaction should be run again. Any other error: not done, or of an ownership that has ended.
	SettleIn(ctx context.Context, tx Execer, tokens []bus.Token, outputs []Output) (end func(err error) error, err error)
}

// ErrAgain is wrapped where a transaction should be run again at once, because what was in its way is not any more.
var ErrAgain = errors.New("run the transaction again")

// TransactionHost is an optional ability of a driver, found with [bus.As]: its messages are in a database where handlers can
// have transactions of their own, and its sources are [JoiningSource].
type TransactionHost interface {
	// CheckTransaction returns an error if tx is not a transaction in the driver's database, or not one that a settlement
	// can be a part of. It may change something: tx is to be rolled back.
	CheckTransaction(ctx context.Context, tx Execer) error
}

// Joining is an optional part of a [bus.Handler] that settles its messages in its own transaction, by [Joiner]. A router refuses it
// where the bus is not in a database, and calls CheckJoining before it subscribes.
type Joining interface {
	bus.Handler
	// CheckJoining begins a transaction as the handler does, and returns what host says of it. An error of the host is final;
	// others are those of beginning, and the router calls again unless they are not retryable.
	CheckJoining(ctx context.Context, host TransactionHost) error
}
