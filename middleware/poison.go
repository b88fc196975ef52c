package middleware

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// Poison stores a message in a store of your choice if its error matches, and drops its emitted
// messages. It marks the error by [bus.Ignore], so that the message is settled. A nil match is
// [bus.IsPermanent].
//
// A router has a poison queue for its group and needs no middleware for it. Poison is for a second
// queue, by kind of error, for other people, and for code without a router. driver.Of(b).Poison
// opens the store of any name; millrace poison lists and replays it under that name. An error
// marked by [bus.RetryAfter] or [bus.Unavailable], as by an open breaker, is not final and passes
// unchanged.
//
// If the store cannot be written to, the message fails with both errors, and nothing is lost.
// Poison stores nothing once the context has ended: the failure may come from that. Put it outside
// of Retry, and of all other middleware that decides whether the error is final. For a batch's
// messages, lane and position are not known.
func Poison(store driver.PoisonStore, match func(error) bool) bus.Middleware {
	if store == nil {
		return invalidf("Poison: the store is nil")
	}
	if match == nil {
		match = bus.IsPermanent
	}
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		rollback := bus.Savepoint(ctx)
		err := c.Next(ctx)
		return eachFailure(c, err, func(m *bus.Message, err error) error {
			if ctx.Err() != nil || bus.IsIgnored(err) || comesAgain(err) || !match(err) {
				return err
			}
			if perr := store.Put(ctx, poisonEntry(ctx, m, err)); perr != nil {
				return fmt.Errorf("%w (and the message could not be put into the poison queue: %w)", unmarked{err}, perr)
			}
			rollback(m)
			return bus.Ignore(fmt.Errorf("poisoned: %w", err))
		})
	})
}

// unmarked hides an error's mark: a message that could not be poisoned must come again.
type unmarked struct{ err error }

func (u unmarked) Error() string { return u.err.Error() }

// Is lets errors.Is see through. Code finds a mark by its type only.
func (u unmarked) Is(target error) bool { return errors.Is(u.err, target) }

func poisonEntry(ctx context.Context, m *bus.Message, err error) driver.PoisonEntry {
	d := bus.DeliveryFrom(ctx)
	now := time.Now()
	e := driver.PoisonEntry{
		Message: m.Clone(),
		Topic:   d.Topic, Group: d.Group, Handler: d.Handler, Lane: d.Lane, Position: d.Position,
		Failure: bus.Failure{Class: "permanent", Text: err.Error(), Attempts: d.Attempt, First: now, Last: now},
		Time:    now,
	}
	if d.Failure != nil {
		e.Failure.Replays = d.Failure.Replays
		if !d.Failure.First.IsZero() {
			e.Failure.First = d.Failure.First
		}
	}
	if e.ID = e.NaturalID(); d.ID != m.ID { // in a batch: a replay that is not known may be about to remove that entry
		e.ID = bus.NewID()
	}
	if host, err := os.Hostname(); err == nil {
		e.Host = host
	}
	switch p, ok := errors.AsType[*router.PanicError](err); {
	case ok:
		e.Failure.Class, e.Failure.Stack = "panic", p.Stack
	case errors.Is(err, bus.ErrUndecodable):
		e.Failure.Class = "undecodable"
	case errors.Is(err, context.DeadlineExceeded):
		e.Failure.Class = "timeout"
	case !bus.IsPermanent(err):
		e.Failure.Class = "refused"
	}
	return e
}
