package router

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// HandledHook is told of each handler call when it has ended. It runs on the handler's goroutine: be quick.
type HandledHook interface {
	Handled(ctx context.Context, h Handled)
}

// PoisonedHook is told of each message that was put into the poison queue.
type PoisonedHook interface {
	Poisoned(ctx context.Context, e driver.PoisonEntry)
}

// SkippedHook is told of each message that is settled unhandled, because [Skip] or [SkipUnknown] says
// so. It is called after the settlement, one message of a topic and group at a time. It runs on the
// goroutine that settles messages: be quick.
type SkippedHook interface {
	Skipped(ctx context.Context, d bus.Delivery)
}

// Handled is one call of a handler. The delivery of a batch holds the properties that its messages
// share.
type Handled struct {
	Delivery bus.Delivery
	Messages int
	Took     time.Duration
	Err      error
}

type hooks struct {
	handled  []HandledHook
	poisoned []PoisonedHook
	skipped  []SkippedHook
	errs     []error
}

func (h *hooks) add(values []any) {
	for _, v := range values {
		used := false
		if hook, ok := v.(HandledHook); ok {
			h.handled, used = append(h.handled, hook), true
		}
		if hook, ok := v.(PoisonedHook); ok {
			h.poisoned, used = append(h.poisoned, hook), true
		}
		if hook, ok := v.(SkippedHook); ok {
			h.skipped, used = append(h.skipped, hook), true
		}
		if !used {
			h.errs = append(h.errs, fmt.Errorf("Hooks: %T implements none of HandledHook, PoisonedHook and SkippedHook", v))
		}
	}
}

// guarded calls a function of the user's that nothing depends on. If the function panics, guarded
// logs the panic.
func (c *consumer) guarded(name string, f func()) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("a hook panicked", "hook", name, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	f()
}
