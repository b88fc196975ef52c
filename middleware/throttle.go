package middleware

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Throttle lets at most perSecond messages a second through, and up to burst at once after a pause, over all handlers
// that are given the same middleware value. A call waits for its turn within its context; waiting calls keep their
// workers. A batch waits for all of its messages.
//
// Put it inside of whatever skips or refuses messages (Filter, Validate, Deduplicate, a breaker), which should not use
// up the rate; inside of Retry if each try counts; and outside of Timeout, unless waiting shall count as time.
func Throttle(perSecond float64, burst int) bus.Middleware {
	return ThrottleBy(func(*bus.Message) string { return "" }, perSecond, burst)
}

// ThrottleBy is Throttle with a rate for each key: those that key makes of the messages, a tenant's name say. What waits
// for one key keeps a worker from the others, so give the handler more workers than keys that are likely to be over
// their rate. It forgets keys whose burst is whole again.
func ThrottleBy(key func(*bus.Message) string, perSecond float64, burst int) bus.Middleware {
	if !(perSecond > 0) || burst < 1 || key == nil { // also if it is no number
		return invalidf("Throttle with rate %v, burst %d, key function given: %v: want a rate above 0, a burst of at least 1 and a function", perSecond, burst, key != nil)
	}
	l := &limiter{interval: time.Duration(float64(time.Second) / perSecond), full: map[string]time.Time{}, sweepAt: 1024}
	l.burst = time.Duration(burst) * l.interval
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		if err := l.wait(ctx, c, key); err != nil {
			return err
		}
		return c.Next(ctx)
	})
}

// limiter is a token bucket for each key, kept as the time at which it will be full.
type limiter struct {
	interval time.Duration
	burst    time.Duration // what a full bucket is worth

	mu      sync.Mutex
	full    map[string]time.Time
	sweepAt int // this many keys are looked through for those that can be forgotten
}

// wait takes a token for each message, in debt if need be, and waits until the longest debt is paid.
func (l *limiter) wait(ctx context.Context, c bus.Call, key func(*bus.Message) string) error {
	delay := l.take(c, key)
	if delay <= 0 {
		return nil
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		l.giveBack(c, key)
		return fmt.Errorf("throttled: %w", context.Cause(ctx))
	}
}

func (l *limiter) take(c bus.Call, key func(*bus.Message) string) (delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for m := range c.Messages() {
		k := key(m)
		full := l.full[k]
		if full.Before(now) {
			full = now
		}
		full = full.Add(l.interval)
		l.full[k] = full
		delay = max(delay, full.Sub(now)-l.burst)
	}
	if len(l.full) >= l.sweepAt {
		for k, full := range l.full {
			if full.Before(now) {
				delete(l.full, k)
			}
		}
		l.sweepAt = max(2*len(l.full), 1024)
	}
	return delay
}

// giveBack returns tokens that were not used.
func (l *limiter) giveBack(c bus.Call, key func(*bus.Message) string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for m := range c.Messages() {
		if k := key(m); !l.full[k].IsZero() {
			l.full[k] = l.full[k].Add(-l.interval)
		}
	}
}
