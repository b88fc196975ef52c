package kafka

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// backoff spaces out repeated tries: up to 50 ms, doubling up to 5 s, with full jitter.
type backoff struct{ limit time.Duration }

// delay is how long to wait before the next try.
func (b *backoff) delay() time.Duration {
	b.limit = min(max(2*b.limit, firstBackoff), lastBackoff)
	return rand.N(b.limit)
}

// wait waits for the next try, or returns the context's error.
func (b *backoff) wait(ctx context.Context) error {
	t := time.NewTimer(b.delay())
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// persist calls f again while its error may pass, until ctx ends; then it returns the last error that f had before.
func persist(ctx context.Context, f func() error) error {
	var last error // says more than that the time is up
	for b := (backoff{}); ; {
		err := f()
		if err == nil || !retryable(err) {
			return err
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if b.wait(ctx) != nil {
			return last
		}
	}
}
