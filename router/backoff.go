package router

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff is a wait that doubles from 100 ms to 5 s, with full jitter. The zero value is ready.
type backoff struct{ next time.Duration }

const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 5 * time.Second
)

// delay returns the next wait.
func (b *backoff) delay() time.Duration {
	b.next = min(max(2*b.next, backoffFirst), backoffMost)
	return b.next/2 + rand.N(b.next/2)
}

// wait waits, at most until ctx ends.
func (b *backoff) wait(ctx context.Context) {
	t := time.NewTimer(b.delay())
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
