package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// ledger notes which numbers arrived, one bit each, and counts those that came twice.
type ledger struct {
	n     int
	seen  []atomic.Uint64
	count atomic.Int64 // different numbers
	twice atomic.Int64
	bell  chan struct{} // rung at the first and at the last

	// arrived, if set, is told of each first arrival.
	arrived func(number int)
}

func newLedger(n int) *ledger {
	return &ledger{n: n, seen: make([]atomic.Uint64, n/64+1), bell: make(chan struct{}, 1)}
}

// note is called by handlers.
func (l *ledger) note(payload []byte) {
	number := numberOf(payload)
	if number < 0 || number >= l.n {
		l.twice.Add(1) // nothing of ours
		return
	}
	bit := uint64(1) << (number % 64)
	if l.seen[number/64].Or(bit)&bit != 0 {
		l.twice.Add(1)
		return
	}
	if l.arrived != nil {
		l.arrived(number)
	}
	if n := l.count.Add(1); n == 1 || n == int64(l.n) {
		select {
		case l.bell <- struct{}{}:
		default:
		}
	}
}

// patience is how long nothing at all may arrive.
const patience = time.Minute

// wait waits for n messages; n is 1 or all.
func (l *ledger) wait(ctx context.Context, n int) error {
	for last := int64(-1); l.count.Load() < int64(n); {
		select {
		case <-l.bell:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(patience):
			if last == l.count.Load() {
				return fmt.Errorf("%d of %d messages arrived, and no more for %v", last, n, patience)
			}
			last = l.count.Load()
		}
	}
	return nil
}

// check says whether every message arrived exactly once.
func (l *ledger) check() error {
	if missing := int64(l.n) - l.count.Load(); missing != 0 {
		return fmt.Errorf("%d of %d messages did not arrive", missing, l.n)
	}
	if twice := l.twice.Load(); twice != 0 {
		return fmt.Errorf("%d arrivals too many of %d messages", twice, l.n)
	}
	return nil
}
