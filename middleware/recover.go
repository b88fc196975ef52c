package middleware

import (
	"context"
	"runtime/debug"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// Recover turns a panic into an error: a [*router.PanicError] with the stack.
//
// A router does this for its handlers without any middleware, and also turns runtime.Goexit into an
// error. Recover is for code that calls handlers by itself. It is also for middleware that should
// meet a panic as an error: Logging, Retry or a breaker outside of Recover. Recover cannot stop a
// Goexit, which ends the goroutine nonetheless.
func Recover() bus.Middleware {
	return func(next bus.Handler) bus.Handler {
		r := recovering{next}
		if batch, ok := next.(bus.BatchHandler); ok {
			return recoveringBatch{r, batch}
		}
		return r
	}
}

type recovering struct{ next bus.Handler }

// Handle implements bus.Handler.
func (r recovering) Handle(ctx context.Context, m *bus.Message) (err error) {
	defer recovered(&err)
	return r.next.Handle(ctx, m)
}

type recoveringBatch struct {
	recovering
	batch bus.BatchHandler
}

// HandleBatch implements bus.BatchHandler.
func (r recoveringBatch) HandleBatch(ctx context.Context, ms []*bus.Message) (err error) {
	defer recovered(&err)
	return r.batch.HandleBatch(ctx, ms)
}

func recovered(err *error) {
	if p := recover(); p != nil {
		*err = &router.PanicError{Value: p, Stack: string(debug.Stack())}
	}
}
