package sqllog

import (
	"math/rand/v2"
	"time"
)

// backoff is the pause before the next try: 100 ms doubling to 5 s, with full jitter, so that many processes that lost
// the same server do not return to it at once. The zero value is ready.
type backoff struct{ limit time.Duration }

func (b *backoff) next() time.Duration {
	b.limit = min(max(2*b.limit, 100*time.Millisecond), 5*time.Second)
	return time.Millisecond + rand.N(b.limit)
}

func (b *backoff) reset() { b.limit = 0 }

// sleep waits for d, and returns false if one of the channels is closed before.
func sleep(d time.Duration, closing, done <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-closing:
	case <-done:
	}
	return false
}
