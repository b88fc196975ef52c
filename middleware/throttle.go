package middleware

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Throttle lets at most perSecond messages a second through, and up to burst at once after a pause.
// All handlers with the same middleware value share the rate. A call waits for its turn within its
// context; waiting calls keep their workers. A batch waits for all of its messages.
//
// A message does not wait if its turn comes only after its context's deadline. It is
// [bus.Unavailable] until then, and no try is counted: the handler was not called with it. The
// others of its batch go on.
//
// The rate may be as high as 1e9, and a burst must refill within 100 years.
//
// Put it inside of middleware that skips or refuses messages (Filter, Validate, Deduplicate, a
// breaker), so that these use up no rate. Put it inside of Retry if each try counts, and outside of
// Timeout. router.Timeout is outside of everything: within it, the wait takes from the handler's
// time.
func Throttle(perSecond float64, burst int) bus.Middleware {
	return throttle("Throttle", nil, perSecond, burst)
}

// ThrottleBy is [Throttle] with a rate for each key. key makes the key of a message, for example a
// tenant's name. If a message's turn comes after the deadline, it is postponed ([bus.Postpone]),
// and messages of other keys go on. A long line comes back one by one, at the key's rate.
//
// A message that waits within its deadline keeps a worker from other keys, so give the handler more
// workers than messages that wait. ThrottleBy forgets a key once its burst is whole again.
func ThrottleBy(key func(*bus.Message) string, perSecond float64, burst int) bus.Middleware {
	if key == nil {
		return invalidf("ThrottleBy: the key function is nil")
	}
	return throttle("ThrottleBy", key, perSecond, burst)
}

// longestBurst leaves room in a time.Duration for the debt of the waiting messages.
const longestBurst = 100 * 365 * 24 * time.Hour

// throttle makes a middleware with a rate for each key, or one for all if key is nil.
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
	l := &limiter{key: key, interval: time.Duration(interval), buckets: map[string]bucket{}, sweepAt: 1024}
	l.burst = time.Duration(burst) * l.interval
	return func(next bus.Handler) bus.Handler {
		single := bus.HandlerFunc(func(ctx context.Context, m *bus.Message) error {
			if errs := l.wait(ctx, []*bus.Message{m}); errs != nil {
				return errs[0]
			}
			return next.Handle(ctx, m)
		})
		batch, ok := next.(bus.BatchHandler)
		if !ok {
			return single
		}
		return throttledBatch{single, l, batch}
	}
}

type throttledBatch struct {
	bus.HandlerFunc
	*limiter
	next bus.BatchHandler
}

// HandleBatch implements bus.BatchHandler.
func (b throttledBatch) HandleBatch(ctx context.Context, ms []*bus.Message) error {
	errs := b.wait(ctx, ms)
	if errs == nil {
		return b.next.HandleBatch(ctx, ms)
	}
	return handleRest(ctx, b.next, ms, errs, func(i int) bool { return errs[i] == nil })
}

// limiter is a token bucket for each key.
type limiter struct {
	key      func(*bus.Message) string // nil: one bucket for all
	interval time.Duration
	burst    time.Duration // the time in which a full bucket refills

	mu      sync.Mutex
	buckets map[string]bucket
	sweepAt int // at this number of keys, sweep looks for those to forget
}

type bucket struct {
	full time.Time // when it will be full
	last time.Time // when the last postponed message may come
}

// farthest bounds how far ahead a postponed message is put. A message in a long line asks
// again, so that it follows a rate that a restart has raised.
const farthest = 10 * time.Minute

// wait takes a token for each message, in debt if need be, and waits until the longest debt is
// paid. It refuses at once messages that would wait longer than the context: those behind them
// would wait for nothing. It returns nil if no message is refused.
func (l *limiter) wait(ctx context.Context, ms []*bus.Message) []error {
	delay, errs := l.take(ctx, ms)
	if delay <= 0 {
		return errs
	}
	paid := time.Now().Add(delay)
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return errs
	case <-ctx.Done():
	}
	if errs == nil {
		errs = make([]error, len(ms))
	}
	l.giveBack(ms, errs)
	err := l.refuse(fmt.Errorf("throttled: the handler was not called: the context ended before the rate admitted the message: %w", context.Cause(ctx)), time.Until(paid))
	for i := range errs {
		if errs[i] == nil {
			errs[i] = err
		}
	}
	return errs
}

// refuse is the error of a message that comes again in d.
func (l *limiter) refuse(err error, d time.Duration) error {
	if l.key == nil {
		return notBegun(err, d)
	}
	return notItsTurn(err, d)
}

func (l *limiter) keyOf(m *bus.Message) string {
	if l.key == nil {
		return ""
	}
	return l.key(m)
}

func (l *limiter) take(ctx context.Context, ms []*bus.Message) (delay time.Duration, errs []error) {
	deadline, bounded := ctx.Deadline()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for i, m := range ms {
		k := l.keyOf(m)
		b := l.buckets[k]
		if b.full.Before(now) {
			b.full = now
		}
		full := b.full.Add(l.interval)
		d := full.Sub(now) - l.burst
		if d > 0 && bounded && deadline.Sub(now) <= d {
			if errs == nil {
				errs = make([]error, len(ms))
			}
			errs[i] = l.refuse(fmt.Errorf("throttled: the handler was not called: the rate admits the message in %v, after the deadline; put the time-out inside of Throttle, as middleware.Timeout: %w", d, context.DeadlineExceeded), b.postpone(now, d, l))
			l.buckets[k] = b
			continue
		}
		b.full = full
		l.buckets[k] = b
		delay = max(delay, d)
	}
	l.sweep(now)
	return delay, errs
}

// postpone gives a message of the bucket a time, one interval behind the message before, and
// returns the time until then. If all messages came at once, all but one would come in vain.
func (b *bucket) postpone(now time.Time, d time.Duration, l *limiter) time.Duration {
	if l.key == nil {
		return d
	}
	first := now.Add(d)
	if b.last = b.last.Add(l.interval); b.last.Before(first) || b.last.Sub(first) > farthest {
		b.last = first
	}
	return b.last.Sub(now)
}

// sweep forgets keys with a full bucket for which no postponed message comes.
func (l *limiter) sweep(now time.Time) {
	if len(l.buckets) < l.sweepAt {
		return
	}
	for k, b := range l.buckets {
		if b.full.Before(now) && b.last.Before(now) {
			delete(l.buckets, k)
		}
	}
	l.sweepAt = max(2*len(l.buckets), 1024)
}

// giveBack returns the tokens of messages that were not refused.
func (l *limiter) giveBack(ms []*bus.Message, errs []error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, m := range ms {
		if errs[i] != nil {
			continue
		}
		k := l.keyOf(m)
		if b := l.buckets[k]; !b.full.IsZero() {
			b.full = b.full.Add(-l.interval)
			l.buckets[k] = b
		}
	}
}
