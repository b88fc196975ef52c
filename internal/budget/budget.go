// Package budget bounds the work under way at a broker, by number and by bytes. A broker that does
// not answer costs so much memory, and then callers wait.
package budget

import (
	"context"
	"slices"
	"sync"
)

// Budget is a bound from which callers take shares, in the order in which they came. An item that
// is larger than all of the bytes is admitted alone. Safe for concurrent use.
type Budget struct {
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

// New returns a budget for so many items, and so many bytes of all of them together.
func New(items, bytes int) *Budget { return &Budget{items: items, bytes: bytes, allItems: items} }

// TryTake takes a share for an item of this size. It returns false if it would have to wait for the
// share.
func (b *Budget) TryTake(size int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) > 0 || !b.fits(size) {
		return false
	}
	b.take(size)
	return true
}

// Take waits for a share for an item of this size. It returns false if ctx ends, or closed is
// closed, before it has one.
func (b *Budget) Take(ctx context.Context, closed <-chan struct{}, size int) bool {
	c := &claim{size: size, granted: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, c)
	b.grant()
	b.mu.Unlock()
	select {
	case <-c.granted:
		return true
	case <-ctx.Done():
	case <-closed:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.waiting, c)
	if i < 0 {
		return true // granted at the last moment
	}
	b.waiting = slices.Delete(b.waiting, i, i+1)
	b.grant() // those behind may ask for less
	return false
}

// Give gives back the share of an item of this size.
func (b *Budget) Give(size int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.items, b.bytes = b.items+1, b.bytes+size
	b.grant()
}

// Idle reports whether nothing is under way.
func (b *Budget) Idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.items == b.allItems
}

func (b *Budget) fits(size int) bool {
	return b.items > 0 && (b.bytes >= size || b.items == b.allItems)
}

func (b *Budget) take(size int) { b.items, b.bytes = b.items-1, b.bytes-size }

// grant serves those that wait, as far as the budget goes.
func (b *Budget) grant() {
	n := 0
	for ; n < len(b.waiting) && b.fits(b.waiting[n].size); n++ {
		b.take(b.waiting[n].size)
		close(b.waiting[n].granted)
	}
	b.waiting = slices.Delete(b.waiting, 0, n)
}
