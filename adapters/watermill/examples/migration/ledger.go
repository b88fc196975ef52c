package main

import (
	"context"
	"fmt"
	"sync"
)

// Order is what the services exchange. Number counts all orders, Nth those of the customer.
type Order struct {
	Number   int    `json:"number"`
	Customer string `json:"customer"`
	Nth      int    `json:"nth"`
}

// ledger notes which orders were published, and who handled them, in what order.
type ledger struct {
	mu        sync.Mutex
	changed   chan struct{} // closed with the next change
	published map[int]bool
	by        map[int][]string // order → who handled it, each time
	highest   map[string]int   // customer → the highest Nth that was handled
	skipped   []string         // an order that was handled before an earlier one of its customer
}

func newLedger() *ledger {
	return &ledger{changed: make(chan struct{}), published: map[int]bool{}, by: map[int][]string{}, highest: map[string]int{}}
}

func (l *ledger) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *ledger) publish(o Order) { l.change(func() { l.published[o.Number] = true }) }

func (l *ledger) handle(who string, o Order) {
	l.change(func() {
		l.by[o.Number] = append(l.by[o.Number], who)
		if o.Nth > l.highest[o.Customer]+1 {
			l.skipped = append(l.skipped, fmt.Sprintf("order %d of %s was handled after %d", o.Nth, o.Customer, l.highest[o.Customer]))
		}
		l.highest[o.Customer] = max(l.highest[o.Customer], o.Nth)
	})
}

// until waits for a state of the ledger.
func (l *ledger) until(ctx context.Context, what string, holds func() bool) error {
	for {
		l.mu.Lock()
		done, changed := holds(), l.changed
		l.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
}

// leastOrders is how many orders each step lasts, at least.
const leastOrders = 300

// more waits until so many further orders were handled.
func (l *ledger) more(ctx context.Context) error {
	l.mu.Lock()
	want := len(l.by) + leastOrders
	l.mu.Unlock()
	return l.until(ctx, fmt.Sprintf("%d orders", want), func() bool { return len(l.by) >= want })
}

// handledBy waits until somebody has handled so many orders.
func (l *ledger) handledBy(ctx context.Context, who string, n int) error {
	return l.until(ctx, fmt.Sprintf("%s to handle %d orders", who, n), func() bool { return l.count()[who] >= n })
}

// count is how many calls each has had. Called with the lock held.
func (l *ledger) count() map[string]int {
	counts := map[string]int{}
	for _, who := range l.by {
		for _, w := range who {
			counts[w]++
		}
	}
	return counts
}

// complete waits until all that was published is handled.
func (l *ledger) complete(ctx context.Context) error {
	return l.until(ctx, "every published order to be handled", func() bool { return len(l.missing()) == 0 })
}

func (l *ledger) missing() (numbers []int) {
	for n := range l.published {
		if len(l.by[n]) == 0 {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// report sums up, and is an error if an order was lost or, where order is promised, overtaken.
func (l *ledger) report(ordered bool) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	repeated, strange := 0, 0
	for n, who := range l.by {
		if len(who) > 1 {
			repeated++
		}
		if !l.published[n] {
			strange++
		}
	}
	missing := l.missing()
	text := fmt.Sprintf("%d orders published, %d lost, %d handled more than once, calls by service: %v", len(l.published), len(missing), repeated, l.count())
	switch {
	case len(missing) > 0:
		return text, fmt.Errorf("lost orders: %v", missing)
	case strange > 0:
		return text, fmt.Errorf("%d orders were handled that nobody published", strange)
	case ordered && len(l.skipped) > 0:
		return text, fmt.Errorf("%d times out of order, the first: %s", len(l.skipped), l.skipped[0])
	}
	return text, nil
}
