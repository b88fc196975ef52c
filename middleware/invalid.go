package middleware

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Invalid is the result of a middleware constructor with wrong arguments. Its handler has a method
// Check that returns err, which makes the router fail. Without this check, a message is neither
// handled nor lost: each call is [bus.Unavailable] with err, so that the router pauses and logs
// why.
func Invalid(err error) bus.Middleware {
	return func(bus.Handler) bus.Handler { return invalid{err} }
}

func invalidf(format string, args ...any) bus.Middleware {
	return Invalid(fmt.Errorf("middleware: %w: "+format, append([]any{bus.ErrInvalid}, args...)...))
}

type invalid struct{ err error }

// Check returns the mistake.
func (i invalid) Check() error { return i.err }

// Handle implements bus.Handler.
func (i invalid) Handle(context.Context, *bus.Message) error {
	return bus.Unavailable(i.err, time.Minute)
}

// HandleBatch implements bus.BatchHandler.
func (i invalid) HandleBatch(context.Context, []*bus.Message) error {
	return bus.Unavailable(i.err, time.Minute)
}
