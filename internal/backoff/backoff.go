// Package backoff spaces out repeated tries, so that many processes that lost the same broker do
// not return to it at once.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	first = 100 * time.Millisecond
	most  = 5 * time.Second
)

// Pause returns how long to wait after so many failures in a row: 100 ms after the first one, twice
// as much after each further one, 5 s at most. Up to half of it is taken off at random. So no two
// processes keep step, and no loop spins.
func Pause(failures int) time.Duration {
	d := min(first<<min(max(failures-1, 0), 10), most)
	return d - rand.N(d/2+1)
}

// Backoff counts failures, and pauses after each. The zero value is ready; assign it to begin anew
// after a success. Not safe for concurrent use.
type Backoff struct{ failures int }

// Next counts a failure, and returns how long to wait before the next try.
func (b *Backoff) Next() time.Duration {
	b.failures++
	return Pause(b.failures)
}

// Wait counts a failure, and waits until the next try is due. It returns false if ctx ends before.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Sleep waits for d. It returns false if ctx ends before.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
