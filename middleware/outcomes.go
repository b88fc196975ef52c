package middleware

import (
	"time"

	"github.com/millrace-go/millrace/bus"
)

// eachFailure passes each message's error of a call to f, and returns the call's error with f's
// results.
func eachFailure(c bus.Call, err error, f func(m *bus.Message, err error) error) error {
	if err == nil {
		return nil
	}
	errs := bus.Outcomes(err, c.Len())
	i := 0
	for m := range c.Messages() {
		if errs[i] != nil {
			errs[i] = f(m, errs[i])
		}
		i++
	}
	if len(errs) == 1 { // a single message, or a batch of one: its error is the call's
		return errs[0]
	}
	return bus.PerMessage(errs)
}

// comesAgain reports whether an error's mark makes the message come again: no middleware inside has
// given it up.
func comesAgain(err error) bool {
	_, later := bus.RetryDelay(err)
	_, away := bus.UnavailableFor(err)
	_, postponed := bus.PostponedFor(err)
	return later || away || postponed
}

// notBegun is the error of a call that was not let through to the handler, like the calls after it.
// It says nothing about the message, so no try is counted.
func notBegun(err error, d time.Duration) error { return bus.Unavailable(&idleError{err}, d) }

// notItsTurn is notBegun for one message, while others pass.
func notItsTurn(err error, d time.Duration) error { return bus.Postpone(&idleError{err}, d) }

// idleError tells Retry that no try took place: Retry then reports the failure of the try before.
type idleError struct{ err error }

func (e *idleError) Error() string { return e.err.Error() }
func (e *idleError) Unwrap() error { return e.err }

// shortly is the delay before a call that should soon be possible.
const shortly = 100 * time.Millisecond
