package kafka

import (
	"context"
	"sync"
)

// publishBuffer bounds the bytes of messages that are being published, of all callers. A broker that does not answer
// costs this much memory, then publishers wait.
const publishBuffer = 256 << 20

// budget is a bound that callers take their shares of, in the order in which they came.
type budget struct {
	mu      sync.Mutex
	size    int
	free    int
	waiting []*share
}

type share struct {
	size    int
	granted chan struct{}
}

func newBudget(size int) *budget { return &budget{size: size, free: size} }

// tryTake takes n if it is free now and nobody waits.
func (b *budget) tryTake(n int) bool {
	n = min(n, b.size)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) > 0 || b.free < n {
		return false
	}
	b.free -= n
	return true
}

// take waits for n to be free. What was taken must be given back. More than the whole budget is admitted alone.
func (b *budget) take(ctx context.Context, n int) error {
	s := &share{size: min(n, b.size), granted: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, s)
	b.grant()
	b.mu.Unlock()
	select {
	case <-s.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, w := range b.waiting {
		if w == s {
			b.waiting = append(b.waiting[:i], b.waiting[i+1:]...)
			b.grant() // those behind may have less to ask for
			return ctx.Err()
		}
	}
	return nil // granted at the last moment
}

// give gives back what a take of n took.
func (b *budget) give(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += min(n, b.size)
	b.grant()
}

// grant serves those who wait, as far as it goes. Called with the lock held.
func (b *budget) grant() {
	for len(b.waiting) > 0 && b.free >= b.waiting[0].size {
		b.free -= b.waiting[0].size
		close(b.waiting[0].granted)
		b.waiting = b.waiting[1:]
	}
}
