package middleware

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Invalid is what a constructor of middleware returns when its arguments make no sense. The handler that it makes has a
// method Check that returns err; what is called in spite of that is never handled, nor lost: each call is
// [bus.Unavailable] with err, so that the router pauses and says why.
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
