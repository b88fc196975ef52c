package middleware

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Retry calls the handler again after each of these delays, and adds up to a tenth of it at random.
// It returns the last error. router.Exponential makes delays.
//
// A router retries by its policy without keeping a worker or a lane; Retry keeps both. Use Retry
// for failures that pass in milliseconds, and for code without a router.
//
// Retry returns an error at once if it is marked by [bus.Permanent], [bus.Ignore],
// [bus.Unavailable] or [bus.Postpone], and when its context ends before the delay would. If
// middleware inside does not let a further try through, as Throttle before a deadline, the result
// is the error of the try before.
//
// A delay that the handler asked for ([bus.RetryAfter]) replaces the scheduled delay. If it is
// longer than all delays, Retry returns the error, and the router serves the delay. Messages
// emitted by a failed try are dropped. In a batch, the failed messages are tried again, together,
// after the longest of their delays.
//
// Put Timeout inside, for a fresh context in each try.
func Retry(delays []time.Duration) bus.Middleware {
	for i, d := range delays {
		if d < 0 {
			return invalidf("Retry: delay %d is %v: want 0 or more", i, d)
		}
	}
	delays = slices.Clone(delays)
	return func(next bus.Handler) bus.Handler {
		r := retrying{delays, next}
		if batch, ok := next.(bus.BatchHandler); ok {
			return retryingBatch{r, batch}
		}
		return r
	}
}

type retrying struct {
	delays []time.Duration
	next   bus.Handler
}

// Handle implements bus.Handler.
func (r retrying) Handle(ctx context.Context, m *bus.Message) error {
	var last error
	for try := 0; ; try++ {
		rollback := bus.Savepoint(ctx)
		err := failure(r.next.Handle(ctx, m), last)
		d, again := r.after(err, try)
		if !again || !wait(ctx, d) {
			return err
		}
		rollback()
		last = err
	}
}

// failure is a try's error. If middleware inside did not let the try through, it is the error of
// the try before: that one failed and must count.
func failure(err, last error) error {
	idle, ok := errors.AsType[*idleError](err)
	if !ok || last == nil {
		return err
	}
	return &unbegun{last, idle}
}

// unbegun has the marks of the last failure, not those of the reason why the next try did not
// begin.
type unbegun struct{ last, reason error }

func (u *unbegun) Error() string {
	return fmt.Sprintf("%v (no further try was let through: %v)", u.last, u.reason)
}
func (u *unbegun) Unwrap() error { return u.last }

// after reports whether another try follows this error, and after which delay.
func (r retrying) after(err error, try int) (time.Duration, bool) {
	if err == nil || try >= len(r.delays) || bus.IsPermanent(err) || bus.IsIgnored(err) {
		return 0, false
	}
	if _, ok := errors.AsType[*unbegun](err); ok {
		return 0, false
	}
	if _, ok := bus.UnavailableFor(err); ok {
		return 0, false
	}
	if _, ok := bus.PostponedFor(err); ok {
		return 0, false
	}
	if d, told := bus.RetryDelay(err); told {
		return d, d <= slices.Max(r.delays)
	}
	return r.delays[try], true
}

// wait waits for d and up to a tenth more. It returns false at once if ctx ends before.
func wait(ctx context.Context, d time.Duration) bool {
	if d >= 10 && d <= math.MaxInt64-d/10 {
		d += rand.N(d / 10)
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

type retryingBatch struct {
	retrying
	batch bus.BatchHandler
}

// HandleBatch implements bus.BatchHandler.
func (r retryingBatch) HandleBatch(ctx context.Context, ms []*bus.Message) error {
	outcomes := make([]error, len(ms))
	place := make([]int, len(ms)) // of the messages that are tried, in ms
	for i := range place {
		place[i] = i
	}
	for try := 0; ; try++ {
		rollback := bus.Savepoint(ctx)
		errs := bus.Outcomes(r.batch.HandleBatch(ctx, ms), len(ms))
		var failed []*bus.Message
		var at []int
		var longest time.Duration
		for i, err := range errs {
			err = failure(err, outcomes[place[i]])
			outcomes[place[i]] = err
			if d, again := r.after(err, try); again {
				failed, at, longest = append(failed, ms[i]), append(at, place[i]), max(longest, d)
			}
		}
		if len(failed) == 0 || !wait(ctx, longest) {
			return bus.PerMessage(outcomes)
		}
		rollback(failed...)
		ms, place = failed, at
	}
}
