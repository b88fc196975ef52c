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
// A call whose turn comes only after its context's deadline does not wait. It is [bus.Unavailable] until then, and no
// try is counted: the handler was not called.
//
// The rate may be as high as 1e9, and a burst has to be made up for within 100 years.
//
// Put it inside of whatever skips or refuses messages (Filter, Validate, Deduplicate, a breaker), which should not use
// up the rate; inside of Retry if each try counts; and outside of Timeout: within router.Timeout, which is outside of
// everything, the wait takes from the handler's time, and a batch that has to wait for longer is never handled.
func Throttle(perSecond float64, burst int) bus.Middleware {
	return throttle("Throttle", func(*bus.Message) string { return "" }, perSecond, burst)
}

// ThrottleBy is Throttle with a rate for each key: those that key makes of the messages, a tenant's name say. What waits
// for one key keeps a worker from the others, so give the handler more workers than keys that are likely to be over
// their rate. It forgets keys whose burst is whole again.
func ThrottleBy(key func(*bus.Message) string, perSecond float64, burst int) bus.Middleware {
	if key == nil {
		return invalidf("ThrottleBy: the key function is nil")
	}
	return throttle("ThrottleBy", key, perSecond, burst)
}

// longestBurst leaves room in a time.Duration for the debt of those who wait.
const longestBurst = 100 * 365 * 24 * time.Hour

func throttle(name string, key func(*bus.Message) string, perSecond float64, burst int) bus.Middleware {
	interval := float64(time.Second) / perSecond
	switch {
	case !(perSecond > 0): // also if it is no number
		return invalidf("%s: the rate is %v messages a second: want more than 0", name, perSecond)
	case interval < 1:
		return invalidf("%s: the rate is %v messages a second: want at most 1e9; to let everything through, leave %s out", name, perSecond, name)
	case burst < 1:
		return invalidf("%s: the burst is %d: want at least 1", name, burst)
	case interval*float64(burst) > float64(longestBurst):
		return invalidf("%s: a burst of %d at %v messages a second is made up for in more than 100 years: want a higher rate or a smaller burst", name, burst, perSecond)
	}
	l := &limiter{interval: time.Duration(interval), full: map[string]time.Time{}, sweepAt: 1024}
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

// wait takes a token for each message, in debt if need be, and waits until the longest debt is paid. It gives them back
// at once if that is not within the context's time: those behind would wait for nothing.
func (l *limiter) wait(ctx context.Context, c bus.Call, key func(*bus.Message) string) error {
	delay := l.take(c, key)
	if delay <= 0 {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= delay {
		l.giveBack(c, key)
		return notBegun(fmt.Errorf("throttled: the handler was not called: its turn is in %v, after the deadline; put the time-out inside of Throttle, as middleware.Timeout: %w", delay, context.DeadlineExceeded), delay)
	}
	turn := time.Now().Add(delay)
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		l.giveBack(c, key)
		return notBegun(fmt.Errorf("throttled: the handler was not called: its context ended before its turn: %w", context.Cause(ctx)), time.Until(turn))
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
