package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var (
	// ErrClosed is the error of everything done with a bus, driver, source or router after it was closed.
	ErrClosed = errors.New("closed")
	// ErrUnsupported is wrapped by errors about what a broker cannot do.
	ErrUnsupported = errors.New("not supported by this broker")
	// ErrTooLarge is wrapped when a message exceeds a limit of the broker.
	ErrTooLarge = errors.New("message too large")
	// ErrNotFound is wrapped when a topic or an entry does not exist.
	ErrNotFound = errors.New("not found")
	// ErrInvalid is wrapped by errors about arguments: a topic's name, a header, a URL parameter.
	ErrInvalid = errors.New("invalid")
	// ErrStale is wrapped by Source.Settle when tokens are of an ownership that has ended.
	ErrStale = errors.New("stale token: the lane has another owner")
	// ErrLaneLost is the cause with which a handler's context ends when this process no longer owns the message's
	// lane. What such a handler returns is not settled: the message is handled again by the lane's new owner.
	ErrLaneLost = errors.New("lane lost")
)

// Error is a failure of a broker operation.
type Error struct {
	// Op is what failed: "publish", "subscribe", "settle", …
	Op string
	// Broker is the driver's name, Topic the topic ("" if none is concerned).
	Broker, Topic string
	// Err is the driver's own error, in the chain for errors.Is and errors.As.
	Err error
	// Definite: the message is definitely not published. Otherwise it is not known.
	Definite bool
	// Retryable: the same call may succeed later.
	Retryable bool
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Broker)
	b.WriteString(": ")
	b.WriteString(e.Op)
	if e.Topic != "" {
		fmt.Fprintf(&b, " %q", e.Topic)
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	if e.Op == "publish" && !e.Definite {
		b.WriteString(" (it is not known whether the message was published)")
	}
	return b.String()
}

// Unwrap returns the driver's own error.
func (e *Error) Unwrap() error { return e.Err }

// PublishError is the outcome of a publish call of which some messages failed. Errs is index-aligned with the
// messages; a nil entry is durable.
type PublishError struct{ Errs []error }

func (e *PublishError) Error() string {
	var first error
	n := 0
	for _, err := range e.Errs {
		if err != nil {
			n++
			if first == nil {
				first = err
			}
		}
	}
	if first == nil {
		return "publish: no message failed"
	}
	if len(e.Errs) == 1 {
		return first.Error()
	}
	return fmt.Sprintf("%d of %d messages failed, the first: %v", n, len(e.Errs), first)
}

// Unwrap returns the errors of the messages that failed.
func (e *PublishError) Unwrap() []error {
	var errs []error
	for _, err := range e.Errs {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// failAll is the PublishError in which each of n messages failed with err.
func failAll(n int, err error) *PublishError { return &PublishError{slices.Repeat([]error{err}, n)} }

// IsRetryable says whether the same call may succeed later: false for nil, for closed, unsupported, invalid and
// too large, for what [Permanent] marked, and for a broker's error that its driver knows to be final.
func IsRetryable(err error) bool {
	for _, final := range []error{ErrClosed, ErrUnsupported, ErrInvalid, ErrTooLarge, ErrNotFound} {
		if errors.Is(err, final) {
			return false
		}
	}
	if err == nil || IsPermanent(err) {
		return false
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Retryable
	}
	return true
}

// IsDefinite says whether err means that nothing was published. For a [PublishError] all of its messages must be
// definite, and none durable. false means: perhaps published.
func IsDefinite(err error) bool {
	if pe, ok := errors.AsType[*PublishError](err); ok {
		for _, e := range pe.Errs {
			if !IsDefinite(e) {
				return false
			}
		}
		return true
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Definite
	}
	// Arguments are checked, and a closed bus refuses, before anything is sent.
	return errors.Is(err, ErrInvalid) || errors.Is(err, ErrClosed)
}

// IsTimeout says whether err is of a deadline: a handler's, or that of a call.
func IsTimeout(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
