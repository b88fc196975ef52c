// Package breaker is a circuit breaker around handlers. While a resource of the handlers is
// missing, it calls none of them, and the router takes no messages. It builds on
// github.com/sony/gobreaker.
package breaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/middleware"
)

// Config configures a breaker. A zero field takes its default.
type Config struct {
	// Name appears in errors and the log.
	Name string
	// Failures is the number of failed calls in a row that opens the breaker. Defaults to 5.
	Failures int
	// Open is the time for which the breaker stays open. Then one call goes through and decides
	// whether the breaker closes. Defaults to 10 s.
	Open time.Duration
	// Logger logs when the breaker opens (WARN) and when it closes (INFO). Defaults to
	// [slog.Default].
	Logger *slog.Logger
}

// Defaults of Config.
const (
	DefaultFailures = 5
	DefaultOpen     = 10 * time.Second
)

// ErrOpen is wrapped by the error of a call that the breaker did not let through.
var ErrOpen = errors.New("circuit breaker is open")

// New makes a breaker. All handlers with the same middleware value share it. While it is open, a
// call is [bus.Unavailable] for the remaining time: no try is counted, and the router pauses the
// topic for its group. Then one call goes through, and if it succeeds the rest follow.
//
// If that call fails, it counts as a try of its message. So a message that always fails ends in the
// poison queue, and cannot keep the breaker open for ever.
//
// A call fails if it returns an error, panics, or ends its goroutine. Some calls count neither way,
// because they say nothing about the handler's resource: errors marked by [bus.Permanent],
// [bus.Ignore] or [bus.Unavailable], and cancelled calls. A batch fails if none of its messages
// succeeded and one of them failed.
//
// Put it inside of Filter, Validate and Deduplicate, and outside of Throttle and Retry: a series of
// tries is one call.
func New(c Config) bus.Middleware {
	if c.Failures == 0 {
		c.Failures = DefaultFailures
	}
	if c.Open == 0 {
		c.Open = DefaultOpen
	}
	if c.Failures < 0 || c.Open < 0 {
		return middleware.Invalid(fmt.Errorf("breaker: %w: Failures is %d, Open %v: want 0 (the default) or more", bus.ErrInvalid, c.Failures, c.Open))
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	b := &breaker{config: c}
	b.circuit = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:          c.Name,
		Timeout:       c.Open,
		ReadyToTrip:   func(n gobreaker.Counts) bool { return int(n.ConsecutiveFailures) >= c.Failures },
		IsExcluded:    func(err error) bool { return errors.Is(err, errNeutral) },
		OnStateChange: b.changed,
	})
	return bus.Around(b.call)
}

type breaker struct {
	config  Config
	circuit *gobreaker.TwoStepCircuitBreaker[struct{}]
	until   atomic.Int64 // when it will be half open, in Unix nanoseconds
}

// The circuit gets errNeutral for a call that counts neither way, and errEnded for a call that did
// not return.
var (
	errNeutral = errors.New("neutral")
	errEnded   = errors.New("ended")
)

func (b *breaker) call(ctx context.Context, c bus.Call) error {
	done, err := b.circuit.Allow()
	if err != nil {
		return bus.Unavailable(fmt.Errorf("%w: %q", ErrOpen, b.config.Name), b.wait(err))
	}
	verdict := errEnded
	defer func() { done(verdict) }()
	err = c.Next(ctx)
	verdict = judge(ctx, err, c.Len())
	return err
}

// judge translates a call's outcome for the circuit.
func judge(ctx context.Context, err error, n int) error {
	if err == nil {
		return nil
	}
	verdict := errNeutral
	for _, err := range bus.Outcomes(err, n) {
		if err == nil {
			return nil
		}
		_, away := bus.UnavailableFor(err)
		_, postponed := bus.PostponedFor(err)
		if !away && !postponed && !bus.IsPermanent(err) && !bus.IsIgnored(err) && !errors.Is(ctx.Err(), context.Canceled) {
			verdict = err
		}
	}
	return verdict
}

// wait returns the remaining wait of a call that was not let through. The circuit's time must be
// over, not just up.
func (b *breaker) wait(err error) time.Duration {
	if errors.Is(err, gobreaker.ErrTooManyRequests) { // the probe is under way, from another topic
		return min(b.config.Open, time.Second)
	}
	return max(time.Until(time.Unix(0, b.until.Load())), 0) + time.Millisecond
}

func (b *breaker) changed(_ string, from, to gobreaker.State) {
	level := slog.LevelInfo
	if to == gobreaker.StateOpen {
		level = slog.LevelWarn
		b.until.Store(time.Now().Add(b.config.Open).UnixNano())
	}
	b.config.Logger.Log(context.Background(), level, "circuit breaker", "name", b.config.Name, "from", from.String(), "to", to.String())
}
