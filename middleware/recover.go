package middleware

import (
	"context"
	"runtime/debug"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// Recover makes errors of a panic and of runtime.Goexit: a [*router.PanicError] with the stack. Of a Goexit the error
// is [router.ErrGoexit] too.
//
// A router does this for its handlers without any middleware. Recover is for code that calls handlers by itself, and for
// middleware that shall meet a panic as an error: Logging, Retry or a breaker outside of Recover.
//
// Each call runs in a goroutine of its own, because Goexit cannot be stopped in the goroutine that it ends.
func Recover() bus.Middleware {
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		result := make(chan error, 1)
		go func() {
			var err error
			returned := false
			defer func() {
				if p := recover(); p != nil {
					err = &router.PanicError{Value: p, Stack: string(debug.Stack())}
				} else if !returned {
					err = &goexit{router.PanicError{Value: router.ErrGoexit, Stack: string(debug.Stack())}}
				}
				result <- err
			}()
			err = c.Next(ctx)
			returned = true
		}()
		return <-result
	})
}

// goexit is router.ErrGoexit with the stack.
type goexit struct{ panicked router.PanicError }

func (g *goexit) Error() string { return router.ErrGoexit.Error() }

// Unwrap lets errors.Is find the reason, and the router the stack.
func (g *goexit) Unwrap() []error { return []error{router.ErrGoexit, &g.panicked} }
