package middleware

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Throttle lets at most perSecond messages a second through, and up to burst at once after a pause. A call waits for
// its turn within its context; waiting calls keep their workers. A batch waits for all of its messages. It panics
// never: perSecond and burst below what makes sense are a permanent error of each call that says so.
func Throttle(perSecond float64, burst int) bus.Middleware {
	l := &limiter{interval: time.Duration(float64(time.Second) / perSecond), burst: burst}
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		if perSecond <= 0 || burst < 1 {
			return bus.Permanent(fmt.Errorf("middleware: %w: Throttle(%v, %d): want a rate above 0 and a burst of at least 1", bus.ErrInvalid, perSecond, burst))
		}
		if err := l.wait(ctx, c.Len()); err != nil {
			return err
		}
		return c.Next(ctx)
	})
}

// limiter is a token bucket that is kept as the time at which it will be full.
type limiter struct {
	interval time.Duration
	burst    int

	mu   sync.Mutex
	full time.Time
}

// wait takes n tokens, in debt if need be, and waits until the debt is paid.
func (l *limiter) wait(ctx context.Context, n int) error {
	l.mu.Lock()
	now := time.Now()
	if l.full.Before(now) {
		l.full = now
	}
	l.full = l.full.Add(time.Duration(n) * l.interval)
	delay := l.full.Sub(now) - time.Duration(l.burst)*l.interval
	l.mu.Unlock()
	if delay <= 0 {
		return nil
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		l.mu.Lock() // the tokens were not used
		l.full = l.full.Add(-time.Duration(n) * l.interval)
		l.mu.Unlock()
		return fmt.Errorf("throttled: %w", context.Cause(ctx))
	}
}

// ConcurrencyLimit lets at most n calls run at once, over all handlers that are given the same middleware value: a
// database's connections, say. Others wait within their context.
func ConcurrencyLimit(n int) bus.Middleware {
	slots := make(chan struct{}, max(n, 1))
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("waiting for one of %d places: %w", cap(slots), context.Cause(ctx))
		}
		defer func() { <-slots }()
		return c.Next(ctx)
	})
}
