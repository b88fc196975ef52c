package driver

import (
	"context"
	"slices"
	"sync"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/only"
)

// JoinFunc settles messages of one call in tx; see [JoiningSource].
type JoinFunc func(ctx context.Context, tx Execer, done []*bus.Message, outputs []Output) (end func(err error) error, err error)

// Joiner settles the messages of one call in the handler's own transaction.
type Joiner struct {
	settle JoinFunc

	mu      sync.Mutex
	settled []*bus.Message
}

// NewJoiner makes the joiner of a call from the function that settles its messages. Routers call
// it.
func NewJoiner(settle JoinFunc) *Joiner { return &Joiner{settle: settle} }

// JoinerFrom returns the joiner of ctx's call, for [Joining] handlers. It is nil if no router made
// the call, or if the handler is not Joining.
func JoinerFrom(ctx context.Context) *Joiner {
	j, _ := bus.Engine(only.Module{}).Joiner(ctx).(*Joiner)
	return j
}

// Settle settles messages of the call in tx, a transaction in the bus's database, and publishes
// outputs with them. [JoiningSource] explains its arguments and results. After end has returned
// nil, the router does not settle the messages again, however the call ends.
func (j *Joiner) Settle(ctx context.Context, tx Execer, done []*bus.Message, outputs []Output) (end func(err error) error, err error) {
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

// Settled reports whether a message of the call is settled already. This happens when middleware
// calls the handler again.
func (j *Joiner) Settled(m *bus.Message) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Contains(j.settled, m)
}
