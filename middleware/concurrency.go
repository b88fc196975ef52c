package middleware

import (
	"context"
	"fmt"

	"github.com/millrace-go/millrace/bus"
)

// ConcurrencyLimit lets at most n calls run at once, over all handlers that are given the same middleware value: a
// database's connections, say. Others wait within their context, and keep their workers. A batch is one call.
//
// If the context ends before a place is free, the handler has not been called: the call is [bus.Unavailable] for a
// moment, so that no try is counted.
//
// Put it inside of Retry, so that no place is kept over a delay, and outside of Timeout: within router.Timeout, which is
// outside of everything, the wait takes from the handler's time.
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
