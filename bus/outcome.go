package bus

import (
	"errors"
	"fmt"
	"time"
)

// verdict is an error that a handler marked with what shall follow.
type verdict struct {
	err   error
	kind  verdictKind
	delay time.Duration
}

type verdictKind int8

const (
	permanent verdictKind = iota
	ignore
	retryAfter
	unavailable
	postponed
)

func (v *verdict) Error() string { return v.err.Error() }
func (v *verdict) Unwrap() error { return v.err }

// Permanent marks an error that no retry can help: the message goes to the poison queue at once. nil stays nil.
func Permanent(err error) error { return mark(err, permanent, 0) }

// Ignore marks an error after which the message is settled as if it had been handled; it is logged. nil stays nil.
func Ignore(err error) error { return mark(err, ignore, 0) }

// RetryAfter marks an error after which the message is tried again in d, whatever the policy's schedule says. It
// counts as a try: a policy's limits still hold. nil stays nil.
func RetryAfter(err error, d time.Duration) error { return mark(err, retryAfter, d) }

// Unavailable marks an error that says nothing about the message: what the handler needs is not there, and will not be
// before d has passed. No try is counted. The router holds the message and pauses the subscription of the handler's topic
// and group for d; then it lets one message through to see whether the rest can follow. nil stays nil.
func Unavailable(err error, d time.Duration) error { return mark(err, unavailable, d) }

// Postpone marks an error that says nothing about the message, and nothing about others: it is not this message's turn. The
// message is handled again in d, however often, and no try is counted. The later messages of its key wait, others go on. nil stays nil.
func Postpone(err error, d time.Duration) error { return mark(err, postponed, d) }

func mark(err error, kind verdictKind, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &verdict{err, kind, d}
}

// IsPermanent says whether err was marked by [Permanent].
func IsPermanent(err error) bool { return marked(err, permanent) }

// IsIgnored says whether err was marked by [Ignore].
func IsIgnored(err error) bool { return marked(err, ignore) }

func marked(err error, kind verdictKind) bool {
	v, ok := errors.AsType[*verdict](err)
	return ok && v.kind == kind
}

// RetryDelay returns the delay of an error marked by [RetryAfter].
func RetryDelay(err error) (time.Duration, bool) { return delayOf(err, retryAfter) }

// UnavailableFor returns the delay of an error marked by [Unavailable].
func UnavailableFor(err error) (time.Duration, bool) { return delayOf(err, unavailable) }

// PostponedFor returns the delay of an error marked by [Postpone].
func PostponedFor(err error) (time.Duration, bool) { return delayOf(err, postponed) }

func delayOf(err error, kind verdictKind) (time.Duration, bool) {
	v, ok := errors.AsType[*verdict](err)
	if !ok || v.kind != kind {
		return 0, false
	}
	return v.delay, true
}

// BatchError is the outcome of a batch handler by message, made by [Each].
type BatchError struct {
	// Errs is index-aligned with the batch; nil is success.
	Errs []error
}

// Each makes a batch handler's outcome of one error per message, index-aligned with the batch. It is nil if all
// are nil. Each message follows its own error: those that succeeded are settled.
func Each(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return &BatchError{errs}
		}
	}
	return nil
}

func (e *BatchError) Error() string {
	return fmt.Sprintf("batch: %v", (&PublishError{e.Errs}).Error())
}

// Unwrap returns the errors of the messages that failed.
func (e *BatchError) Unwrap() []error { return (&PublishError{e.Errs}).Unwrap() }

// Outcomes spreads the error of a handler that was given n messages over them: those of [Each] one by one, any other
// error to all. For routers and middleware.
func Outcomes(err error, n int) []error {
	errs := make([]error, n)
	if be, ok := errors.AsType[*BatchError](err); ok {
		if len(be.Errs) == n {
			copy(errs, be.Errs)
			return errs
		}
		err = fmt.Errorf("batch handler: bus.Each was given %d errors for %d messages: %w", len(be.Errs), n, err)
	}
	for i := range errs {
		errs[i] = err
	}
	return errs
}
