package middleware

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/deadline"
)

// Timeout bounds each call of the handler and middleware inside: its context ends after d. Code
// that ignores its context is not cut off.
//
// The option router.Timeout does the same around all of a handler's middleware. Timeout is for a
// part of it. Inside of Retry each try has a fresh context, so that a slow one takes nothing from
// the next. Outside of Retry, d is for all tries together.
func Timeout(d time.Duration) bus.Middleware {
	if d <= 0 {
		return invalidf("Timeout(%v): want more than 0", d)
	}
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		bounded := deadline.After(ctx, d)
		defer bounded.Cancel()
		return c.Next(bounded)
	})
}
