package middleware

import (
	"context"
	"errors"

	"github.com/millrace-go/millrace/bus"
)

// Filter handles the messages for which keep is true, and settles the others unhandled. keep is
// called concurrently.
//
// Put it outside of all costly middleware.
func Filter(keep func(*bus.Message) bool) bus.Middleware {
	if keep == nil {
		return invalidf("Filter: the function that keeps is nil")
	}
	return each(func(ctx context.Context, m *bus.Message) (skip bool, err error) { return !keep(m), nil })
}

// Validate refuses messages for which check returns an error: they go to the poison queue without a
// try. A mark on check's error (bus.RetryAfter, bus.Unavailable, bus.Ignore) stays. An error from
// the end of a context, check's own or the call's, is a failure like any other: it says nothing
// about the message. Package jsonschema checks by a schema.
//
// Put it outside of all costly middleware.
func Validate(check func(context.Context, *bus.Message) error) bus.Middleware {
	if check == nil {
		return invalidf("Validate: the function is nil")
	}
	return each(func(ctx context.Context, m *bus.Message) (bool, error) {
		err := check(ctx, m)
		cutShort := ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
		if err == nil || cutShort || comesAgain(err) || bus.IsIgnored(err) {
			return false, err
		}
		return false, bus.Permanent(err)
	})
}

// each makes a middleware that looks at every message before the handler. It may skip a message,
// which is then settled, or fail it. The handler gets the others.
func each(look func(context.Context, *bus.Message) (skip bool, err error)) bus.Middleware {
	return func(next bus.Handler) bus.Handler {
		single := bus.HandlerFunc(func(ctx context.Context, m *bus.Message) error {
			if skip, err := look(ctx, m); skip || err != nil {
				return err
			}
			return next.Handle(ctx, m)
		})
		batch, ok := next.(bus.BatchHandler)
		if !ok {
			return single
		}
		return eachBatch{single, look, batch}
	}
}

type eachBatch struct {
	bus.HandlerFunc
	look func(context.Context, *bus.Message) (bool, error)
	next bus.BatchHandler
}

// HandleBatch implements bus.BatchHandler.
func (e eachBatch) HandleBatch(ctx context.Context, ms []*bus.Message) error {
	errs := make([]error, len(ms))
	return handleRest(ctx, e.next, ms, errs, func(i int) bool {
		skip, err := e.look(ctx, ms[i])
		errs[i] = err
		return !skip && err == nil
	})
}

// handleRest gives the remaining messages of a batch to the handler, and returns the outcomes of
// all. errs has the outcomes of the others.
func handleRest(ctx context.Context, next bus.BatchHandler, ms []*bus.Message, errs []error, handled func(i int) bool) error {
	kept := make([]*bus.Message, 0, len(ms))
	place := make([]int, 0, len(ms))
	for i, m := range ms {
		if handled(i) {
			kept, place = append(kept, m), append(place, i)
		}
	}
	if len(kept) > 0 {
		for j, err := range bus.Outcomes(next.HandleBatch(ctx, kept), len(kept)) {
			errs[place[j]] = err
		}
	}
	return bus.PerMessage(errs)
}
