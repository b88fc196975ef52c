package middleware

import (
	"context"
	"fmt"

	"github.com/millrace-go/millrace/bus"
)

// ConcurrencyLimit lets at most n calls run at once, over all handlers that are given the same middleware value: a
// database's connections, say. Others wait within their context, and keep their workers. A batch is one call.
//
// Put it inside of Retry, so that no place is kept over a delay, and outside of Timeout, unless waiting shall count as
// time.
func ConcurrencyLimit(n int) bus.Middleware {
	if n < 1 {
		return invalidf("ConcurrencyLimit(%d): want at least 1", n)
	}
	slots := make(chan struct{}, n)
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("waiting for one of %d places: %w", n, context.Cause(ctx))
		}
		defer func() { <-slots }()
		return c.Next(ctx)
	})
}
