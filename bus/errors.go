package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var (
	// ErrClosed is the error of every call on a closed bus, driver, source or router.
	ErrClosed = errors.New("closed")
	// ErrUnsupported is wrapped by errors about a missing ability of a broker.
	ErrUnsupported = errors.New("not supported by this broker")
	// ErrTooLarge is wrapped when a message exceeds a limit of the broker.
	ErrTooLarge = errors.New("message too large")
	// ErrNotFound is wrapped when a topic or an entry does not exist.
	ErrNotFound = errors.New("not found")
	// ErrInvalid is wrapped by errors about arguments: a topic's name, a header, a URL parameter.
	ErrInvalid = errors.New("invalid")
	// ErrStale is wrapped by Source.Settle when the ownership of some tokens has ended.
	ErrStale = errors.New("stale token: the lane has another owner")
	// ErrLaneLost is the cause that ends a handler's context when this process no longer owns the
	// message's lane. The router ignores such a handler's result: the lane's new owner handles the
	// message again. The cause is ErrLaneLost itself when the process has handed the lane over.
	// When the lane was lost without a warning, the cause wraps ErrLaneLost and the driver's
	// reason.
	ErrLaneLost = errors.New("lane lost")
)

// Error is a failure of a broker operation.
type Error struct {
	// Op is the failed operation: "publish", "subscribe", "settle", …
	Op string
	// Broker is the driver's name. Topic is the topic, or "" if none is concerned.
	Broker, Topic string
	// Err is the driver's own error, which errors.Is and errors.As find.
	Err error
	// Definite: the message is definitely not published. If false, it may be published.
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

// PublishError is the outcome of a publish call when some messages failed. Errs is index-aligned
// with the messages; a nil entry says that the message is durable.
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

// Unwrap returns the errors of the failed messages.
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

// IsRetryable reports whether the same call may succeed later. It is false for nil, ErrClosed,
// ErrUnsupported, ErrInvalid, ErrTooLarge and errors marked by [Permanent]. It is also false for a
// broker's error that its driver knows to be final.
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

// IsDefinite reports whether err means that nothing was published. For a [PublishError], every
// message must have failed definitely. false means: perhaps published.
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
	// These checks run before anything is sent.
	return errors.Is(err, ErrInvalid) || errors.Is(err, ErrClosed)
}

// IsTimeout reports whether err comes from a deadline: a handler's, or that of a call.
func IsTimeout(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
