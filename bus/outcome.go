package bus

import (
	"errors"
	"fmt"
	"time"
)

// verdict is an error that a handler marked with the next step.
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

// Permanent marks an error that no retry can help: the message goes to the poison queue at once.
// nil stays nil.
func Permanent(err error) error { return mark(err, permanent, 0) }

// Ignore marks an error to ignore. The router logs it and treats the message as handled: it
// publishes the emitted messages and settles it. nil stays nil.
func Ignore(err error) error { return mark(err, ignore, 0) }

// RetryAfter marks an error so that the message is tried again in d, whatever the policy's schedule
// says. It counts as a try: a policy's limits still hold. nil stays nil.
func RetryAfter(err error, d time.Duration) error { return mark(err, retryAfter, d) }

// Unavailable marks an error that is not the message's fault: a resource of the handler is missing,
// and stays missing for d. No try is counted. The router holds the message and pauses the
// subscription of the handler's topic and group for d. Then it lets one message through to see
// whether the rest can follow. nil stays nil.
func Unavailable(err error, d time.Duration) error { return mark(err, unavailable, d) }

// Postpone marks an error that says nothing about the message or others: this message's turn has
// not come. The router handles the message again in d, however often, and counts no try. Later
// messages of its key wait, other keys go on. nil stays nil.
func Postpone(err error, d time.Duration) error { return mark(err, postponed, d) }

func mark(err error, kind verdictKind, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &verdict{err, kind, d}
}

// IsPermanent reports whether [Permanent] marked err.
func IsPermanent(err error) bool { return marked(err, permanent) }

// IsIgnored reports whether [Ignore] marked err.
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

// BatchError is the outcome of a batch handler by message, made by [PerMessage].
type BatchError struct {
	// Errs is index-aligned with the batch; nil is success.
	Errs []error
}

// PerMessage makes a batch handler's outcome of one error per message, index-aligned with the
// batch. It returns nil if all are nil. Each message follows its own error: successful messages are
// settled.
func PerMessage(errs []error) error {
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

// Unwrap returns the errors of the failed messages.
func (e *BatchError) Unwrap() []error { return (&PublishError{e.Errs}).Unwrap() }

// Outcomes returns one error for each of a handler's n messages: the entries of [PerMessage], or
// any other error n times. Routers and middleware call it.
func Outcomes(err error, n int) []error {
	errs := make([]error, n)
	if be, ok := errors.AsType[*BatchError](err); ok {
		if len(be.Errs) == n {
			copy(errs, be.Errs)
			return errs
		}
		err = fmt.Errorf("batch handler: bus.PerMessage was given %d errors for %d messages: %w", len(be.Errs), n, err)
	}
	for i := range errs {
		errs[i] = err
	}
	return errs
}
