package driver

import (
	"context"
	"fmt"
	"slices"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/condition"
)

// Driver is the whole contract of a driver: the needs of a bus and the group's poison store.
//
// All methods are safe for concurrent use. After Close they fail with [bus.ErrClosed].
type Driver interface {
	bus.Driver

	// Poison opens the group's poison store, which keeps the messages that could not be handled.
	Poison(ctx context.Context, group string) (PoisonStore, error)
}

// Of returns the driver of b. For a driver without a poison store it returns a wrapper: its Poison
// fails with an error that wraps [bus.ErrUnsupported].
func Of(b *bus.Bus) Driver {
	if d, ok := b.Driver().(Driver); ok {
		return d
	}
	return withoutPoison{b.Driver()}
}

type withoutPoison struct{ bus.Driver }

func (d withoutPoison) Poison(context.Context, string) (PoisonStore, error) {
	return nil, fmt.Errorf("%w: the driver of %s keeps no poisoned messages", bus.ErrUnsupported, d.Capabilities().Broker)
}

// Committer is an optional ability of a [bus.Source] that makes settlements durable only after
// Settle has returned.
type Committer interface {
	bus.Source
	// Commit returns once every earlier settlement is durable. It may be called concurrently;
	// concurrent calls share the work.
	Commit(ctx context.Context) error
}

// ConditionObserver is an optional ability of a [bus.LaneObserver]: a driver tells it the
// conditions of the subscription, whether or not anybody calls Receive. The router has it, for health and
// for its log.
type ConditionObserver interface {
	bus.LaneObserver
	// Condition says that something does not work. The text what is a short statement of it, such as
	// "lane 3 cannot be consumed", and err the reason in the broker's words. The driver goes on
	// trying. A nil err says that it works again. If err is not retryable ([bus.IsRetryable]), it
	// will not pass until somebody acts, and its text says what to do.
	//
	// The driver tells at once, and may repeat itself. While the broker cannot be reached, the
	// text is [Disconnected]. Condition does not block. The driver makes one call at a time.
	Condition(what string, err error)
}

// Disconnected names the condition that the broker cannot be reached.
const Disconnected = condition.Disconnected

// FailAll returns the error of a publish in which each of n messages failed with err.
func FailAll(n int, err error) *bus.PublishError {
	return &bus.PublishError{Errs: slices.Repeat([]error{err}, n)}
}
