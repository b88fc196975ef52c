package middleware

import (
	"context"
	"fmt"

	"github.com/millrace-go/millrace/bus"
)

// ConcurrencyLimit lets at most n calls run at once, over all handlers with the same middleware
// value. Use it for a bounded resource, such as a database's connections. Other calls wait within
// their context, and keep their workers. A batch is one call.
//
// If the context ends before a place is free, the handler is not called: the call is
// [bus.Unavailable] for a moment, and no try is counted.
//
// Put it inside of Retry, so that no place is kept over a delay, and outside of Timeout.
// router.Timeout is outside of everything: within it, the wait takes from the handler's time.
func ConcurrencyLimit(n int) bus.Middleware {
	if n < 1 {
		return invalidf("ConcurrencyLimit(%d): want at least 1", n)
	}
	slots := make(chan struct{}, n)
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return notBegun(fmt.Errorf("the handler was not called: all %d places of ConcurrencyLimit were taken until the context ended; put the time-out inside, as middleware.Timeout: %w", n, context.Cause(ctx)), shortly)
		}
		defer func() { <-slots }()
		return c.Next(ctx)
	})
}
