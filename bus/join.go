package bus

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"
)

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
	// After an error tx must be rolled back. One made by [Each] is by token, and wraps ErrStale for each that cannot be
	// settled: its ownership has ended, or it is settled already, or parked since. It wraps ErrNotFound, too, for a message that was
	// withdrawn from where it was parked.
	//
	// end is never nil. It must be called once tx has ended: with nil if it was committed, and with the error of the
	// commit, or that of SettleIn, otherwise. It returns what became of the settlement. nil is done, also where the
	// commit's answer was lost and it turned out to have happened. ErrAgain: not done, and what was in the way is not any more: the
	// whole transaction should be run again. Any other error: not done, or of an ownership that has ended.
	SettleIn(ctx context.Context, tx Execer, tokens []Token, outputs []Output) (end func(err error) error, err error)
}

// ErrAgain is wrapped where a transaction should be run again at once, because what was in its way is not any more.
var ErrAgain = errors.New("run the transaction again")

// TransactionHost is an optional ability of a driver, found with [As]: its messages are in a database where handlers can
// have transactions of their own, and its sources are [JoiningSource].
type TransactionHost interface {
	// CheckTransaction returns an error if tx is not a transaction in the driver's database, or not one that a settlement
	// can be a part of. It may change something: tx is to be rolled back.
	CheckTransaction(ctx context.Context, tx Execer) error
}

// Joining is an optional part of a [Handler] that settles its messages in its own transaction, by [Joiner]. A router refuses it
// where the bus is not in a database, and calls CheckJoining before it subscribes.
type Joining interface {
	Handler
	// CheckJoining begins a transaction as the handler does, and returns what host says of it. An error of the host is final;
	// others are those of beginning, and the router calls again unless they are not retryable.
	CheckJoining(ctx context.Context, host TransactionHost) error
}

// JoinFunc settles messages of one call in tx; see [JoiningSource].
type JoinFunc func(ctx context.Context, tx Execer, done []*Message, outputs []Output) (end func(err error) error, err error)

// Joiner settles the messages of one call in the handler's own transaction.
type Joiner struct {
	settle JoinFunc

	mu      sync.Mutex
	settled []*Message
}

// SetJoiner says how messages of the call can be settled in a transaction of its handler. It is for routers.
func (h *Handling) SetJoiner(f JoinFunc) { h.joiner = &Joiner{settle: f} }

// JoinerFrom returns the joiner of the call whose context ctx is, for handlers that are [Joining]. It is nil if no router made the
// call, or the handler is not Joining.
func JoinerFrom(ctx context.Context) *Joiner {
	h := handlingFrom(ctx)
	for h != nil && h.outer != nil {
		h = h.outer
	}
	if h == nil {
		return nil
	}
	return h.joiner
}

// Settle settles messages of the call in tx, which is a transaction in the bus's database, and publishes outputs with them. What it
// says of its arguments and results is said at [JoiningSource]. After end has returned nil, the router does not settle the
// messages any more, whatever becomes of the call.
func (j *Joiner) Settle(ctx context.Context, tx Execer, done []*Message, outputs []Output) (end func(err error) error, err error) {
	settled, err := j.settle(ctx, tx, done, outputs)
	return func(err error) error {
		if err = settled(err); err == nil {
			j.mu.Lock()
			defer j.mu.Unlock()
			j.settled = append(j.settled, done...)
		}
		return err
	}, err
}

// Settled says whether a message of the call is settled already: then middleware has called its handler again.
func (j *Joiner) Settled(m *Message) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Contains(j.settled, m)
}
