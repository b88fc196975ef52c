package middleware

import (
	"context"

	"github.com/millrace-go/millrace/bus"
)

// Ignore marks the errors that match as [bus.Ignore] does: the message is settled as if it had been handled, what was
// emitted is published, and the router logs the error. router.Is and router.As make matchers. What is marked by
// [bus.RetryAfter] or [bus.Unavailable], as by a breaker that is open, passes untouched, whatever matches.
//
// It is the same wherever it is put, but that middleware outside of it sees the mark. router.Policy can ignore as well,
// for the whole handler.
func Ignore(match func(error) bool) bus.Middleware {
	if match == nil {
		return invalidf("Ignore(nil): want a function")
	}
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		return eachFailure(c, c.Next(ctx), func(_ *bus.Message, err error) error {
			if !comesAgain(err) && match(err) {
				return bus.Ignore(err)
			}
			return err
		})
	})
}
