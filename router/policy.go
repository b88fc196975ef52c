package router

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Policy says how the router reacts to a handler's error. It is an Option; a field that is zero has
// its default.
//
// The handler's own word wins: [bus.Permanent], [bus.RetryAfter], [bus.Ignore].
type Policy struct {
	// Retry is the delay before each further try. Defaults to Exponential(50ms, 10min, 18), which is about an hour. While a message waits,
	// the later ones of its key wait behind it, and all others go on.
	Retry Schedule
	// MaxAge ends the tries at this age of the first failure. Defaults to none.
	MaxAge time.Duration
	// Permanent matches errors that no retry can help.
	Permanent Match
	// Ignore matches errors that count as success, as if marked by [bus.Ignore].
	Ignore Match
	// Then is the action after the last try. Defaults to Poison.
	Then Action
	// KeyWaits has a key's later messages wait while one of its messages is in the poison queue,
	// until somebody replays or drops the entry, also when its lane goes to another process. The
	// poisoned message is tried again by itself a day after its failure. By default the later
	// messages go on. KeyWaits needs a broker that parks ([bus.Capabilities]). A message that the broker
	// does not park is poisoned without its key waiting.
	KeyWaits bool
}

func (p Policy) apply(s *settings)         { s.policy = p.withDefaults() }
func (p Policy) root(_ *core, s *settings) { p.apply(s) }

func (p Policy) withDefaults() Policy {
	if p.Retry == nil {
		p.Retry = Exponential(50*time.Millisecond, 10*time.Minute, 18)
	}
	return p
}

func (p Policy) check() error {
	for i, d := range p.Retry {
		if d < 0 {
			return fmt.Errorf("Policy.Retry[%d] is %v: want 0 or more", i, d)
		}
	}
	if p.MaxAge < 0 {
		return fmt.Errorf("Policy.MaxAge is %v: want 0 (none) or more", p.MaxAge)
	}
	if p.Then < Poison || p.Then > Stop {
		return fmt.Errorf("Policy.Then is %d: want router.Poison, router.Drop or router.Stop", p.Then)
	}
	return nil
}

// Schedule is the least delay before the second try, the third, and so on. The engine adds up to a tenth at random,
// so that messages which failed together do not all come back together.
type Schedule []time.Duration

// Never is the schedule without a second try.
var Never = Schedule{}

// Exponential is a schedule of n delays that double from first up to most.
func Exponential(first, most time.Duration, n int) Schedule {
	s := make(Schedule, 0, max(n, 0))
	for d := min(first, most); len(s) < n; {
		if s = append(s, d); d > most/2 { // twice as much may overflow
			d = most
		} else {
			d *= 2
		}
	}
	return s
}

func jitter(d time.Duration) time.Duration {
	if d < 10 || d > math.MaxInt64-d/10 {
		return d
	}
	return d + rand.N(d/10)
}

// Match says whether an error is meant.
type Match func(error) bool

// Is matches an error in which errors.Is finds one of errs.
func Is(errs ...error) Match {
	return func(err error) bool {
		for _, e := range errs {
			if errors.Is(err, e) {
				return true
			}
		}
		return false
	}
}

// As matches an error in which errors.As finds an E.
func As[E error]() Match {
	return func(err error) bool {
		_, ok := errors.AsType[E](err)
		return ok
	}
}

// Any matches an error that one of m matches.
func Any(m ...Match) Match {
	return func(err error) bool {
		for _, f := range m {
			if f(err) {
				return true
			}
		}
		return false
	}
}

func (m Match) matches(err error) bool { return m != nil && m(err) }

// Action is the step after the last try.
type Action int

const (
	// Poison puts the message into the group's poison queue, with the reason.
	Poison Action = iota
	// Drop settles the message and logs it.
	Drop
	// Stop stops consuming the topic for this group; the message stays unsettled.
	Stop
)

// PanicError is the error of a handler that panicked, or called runtime.Goexit. It is retried like any other.
type PanicError struct {
	// Value is the value passed to panic, or [ErrGoexit]; Stack is the goroutine's stack.
	Value any
	Stack string
}

func (e *PanicError) Error() string {
	if e.Unwrap() != nil {
		return ErrGoexit.Error()
	}
	return fmt.Sprintf("panic: %v", e.Value)
}

// Unwrap lets errors.Is find ErrGoexit. An error that was passed to panic is not found: a policy that ignores it does not
// mean a panic.
func (e *PanicError) Unwrap() error {
	if err, ok := e.Value.(error); ok && errors.Is(err, ErrGoexit) {
		return ErrGoexit
	}
	return nil
}

// ErrGoexit is why a handler failed that called runtime.Goexit, as t.FailNow does.
var ErrGoexit = errors.New("the handler ended its goroutine (runtime.Goexit)")

// ruling is the policy's decision about an error.
type ruling struct {
	kind  rulingKind
	delay time.Duration
	class string
}

type rulingKind int8

const (
	succeeded rulingKind = iota
	retry
	exhausted // by the policy's Then
)

// ignores says whether the policy takes an error for success. It does not if the handler has said
// something else about the error.
func (p *Policy) ignores(err error) (yes bool) {
	defer func() {
		if v := recover(); v != nil {
			yes = false // it does not count as success
		}
	}()
	if err == nil || p.Ignore == nil || bus.IsPermanent(err) || bus.IsIgnored(err) {
		return false
	}
	_, later := bus.RetryDelay(err)
	_, away := bus.UnavailableFor(err)
	_, postponed := bus.PostponedFor(err)
	return !later && !away && !postponed && p.Ignore(err)
}

// judge rules on a try's error. attempt is the number of the try, first the time of the first failure.
func (p *Policy) judge(err error, attempt int, first, now time.Time) ruling {
	switch {
	case err == nil, bus.IsIgnored(err):
		return ruling{kind: succeeded}
	case bus.IsPermanent(err):
		return ruling{kind: exhausted, class: class(err, "permanent")}
	}
	delay, told := bus.RetryDelay(err)
	switch {
	case p.ignores(err):
		return ruling{kind: succeeded}
	case !told && p.Permanent.matches(err):
		return ruling{kind: exhausted, class: class(err, "permanent")}
	}
	if attempt > len(p.Retry) {
		return ruling{kind: exhausted, class: class(err, "retries exhausted")}
	}
	if !told {
		delay = jitter(p.Retry[attempt-1])
	}
	if p.MaxAge > 0 && now.Add(delay).Sub(first) > p.MaxAge {
		return ruling{kind: exhausted, class: class(err, "retries exhausted")}
	}
	return ruling{kind: retry, delay: delay}
}

// judged is judge. If a function of the policy panics, the message fails with that panic.
func (p *Policy) judged(err error, attempt int, first, now time.Time) (r ruling, cause error) {
	defer func() {
		if v := recover(); v != nil {
			cause = &PanicError{Value: v, Stack: string(debug.Stack())}
			r = (&Policy{Retry: p.Retry, MaxAge: p.MaxAge}).judge(cause, attempt, first, now)
		}
	}()
	return p.judge(err, attempt, first, now), err
}

// class returns the failure's class: the error's own class, or else how the message came to its
// end.
func class(err error, otherwise string) string {
	if _, ok := errors.AsType[*PanicError](err); ok {
		return "panic"
	}
	switch {
	case errors.Is(err, bus.ErrUndecodable):
		return "undecodable"
	case bus.IsTimeout(err):
		return "timeout"
	}
	return otherwise
}
