package middleware

import (
	"context"

	"github.com/millrace-go/millrace/bus"
)

// Ignore marks the matching errors as [bus.Ignore] does: the message is settled, its emitted
// messages are published, and the router logs the error. router.Is and router.As make matchers. An
// error marked by [bus.RetryAfter] or [bus.Unavailable], as by an open breaker, passes unchanged.
//
// Its place does not matter, except that middleware outside of it sees the mark. router.Policy can
// ignore as well, for the whole handler.
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
