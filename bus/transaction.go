package bus

import (
	"context"
	"fmt"
	"time"
)

// TransactionalSource is a [Source] that can settle messages and publish what came of them in one transaction: readers
// see all of it or nothing, and after a crash it has happened once or not at all. A driver that has it says so with
// [Capabilities.Transactions], and is asked for it with [Subscription.Transactional]; then Park is a transaction, too.
type TransactionalSource interface {
	Source

	// SettleWith settles deliveries, and publishes the outputs of each in their order, to topics of the same bus. It has one caller at a
	// time. An error made by [Each] is the outcome by settlement: nil is done; one that wraps ErrStale is of an ownership
	// that ended, and its outputs are not published; for any other, its outputs are refused, and nothing of it was done. After
	// any other error none is done, and the router calls again.
	SettleWith(ctx context.Context, ss []Settlement) error
}

// Settlement is a delivery that is done, and what came of it.
type Settlement struct {
	Token   Token
	Outputs []Output
}

// Output is a message to be published.
type Output struct {
	Topic   string
	Message *Message
	// Cause is the id of the message that led to it, in a batch.
	Cause string
}

// Idempotent is an optional part of a [Handler] whose effect happens once for each message, however often it is called
// with it: it remembers in the effect's own transaction what it has handled, as those of package outbox do, or its effect is one that
// can be repeated. A router that is asked for exactly once then needs no transactions of the broker.
type Idempotent interface {
	// Idempotent does nothing.
	Idempotent()
}

// Take is [Handling.Flush] for a router that publishes with the settlement: it ends the call, and returns what is to be
// published. ended is to be called when that is done or has failed, and calls what [OnSuccess] and [OnEnd] were given; it is nil
// if there is nothing to call. After an error, which is about a message that no broker could carry, nothing is to be done.
func (h *Handling) Take(ctx context.Context, failed func(id string) bool) (outputs []Output, ended func(context.Context, error) error, err error) {
	out, endings := h.end()
	now := time.Now()
	for _, e := range out {
		if failed != nil && failed(e.cause) {
			continue
		}
		if err := h.bus.complete(e.msg, now); err != nil {
			return nil, nil, conclude(ctx, endings, fmt.Errorf("emit: publish %q: %w", e.topic, err), failed)
		}
		outputs = append(outputs, Output{Topic: e.topic, Message: e.msg, Cause: e.cause})
	}
	if len(endings) > 0 {
		ended = func(ctx context.Context, err error) error { return conclude(ctx, endings, err, failed) }
	}
	return outputs, ended, nil
}
