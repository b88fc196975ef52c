package rabbitmq

import (
	"context"
	"sync"
)

// budget bounds what is under way by number and by bytes. One item that is larger than all of the bytes is admitted
// alone. Those that wait are served in order.
type budget struct {
	mu       sync.Mutex
	items    int // free
	bytes    int // free; negative while an oversize item is under way
	allItems int
	waiting  []*claim
}

type claim struct {
	size    int
	granted chan struct{}
}

func newBudget(items, bytes int) *budget { return &budget{items: items, bytes: bytes, allItems: items} }

func (b *budget) fits(size int) bool {
	return b.items > 0 && (b.bytes >= size || b.items == b.allItems)
}

func (b *budget) take(size int) { b.items, b.bytes = b.items-1, b.bytes-size }

// idle says whether nothing is under way.
func (b *budget) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.items == b.allItems
}

// try takes size if that needs no waiting.
func (b *budget) try(size int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) > 0 || !b.fits(size) {
		return false
	}
	b.take(size)
	return true
}

// acquire waits for size until ctx ends or closed is closed; then it returns false.
func (b *budget) acquire(ctx context.Context, closed <-chan struct{}, size int) bool {
	b.mu.Lock()
	if len(b.waiting) == 0 && b.fits(size) {
		b.take(size)
		b.mu.Unlock()
		return true
	}
	c := &claim{size: size, granted: make(chan struct{})}
	b.waiting = append(b.waiting, c)
	b.mu.Unlock()
	select {
	case <-c.granted:
		return true
	case <-ctx.Done():
	case <-closed:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, w := range b.waiting {
		if w == c {
			b.waiting = append(b.waiting[:i], b.waiting[i+1:]...)
			b.grant() // those behind may fit where c did not
			return false
		}
	}
	b.give(size) // it was granted at the same moment
	return false
}

// release gives size back.
func (b *budget) release(size int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.give(size)
}

func (b *budget) give(size int) {
	b.items, b.bytes = b.items+1, b.bytes+size
	b.grant()
}

func (b *budget) grant() {
	for len(b.waiting) > 0 && b.fits(b.waiting[0].size) {
		b.take(b.waiting[0].size)
		close(b.waiting[0].granted)
		b.waiting = b.waiting[1:]
	}
}
