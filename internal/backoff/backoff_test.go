package backoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestPauseDoublesAndIsRandomInItsUpperHalf(t *testing.T) {
	for failures, limit := range map[int]time.Duration{
		0: 100 * time.Millisecond, 1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 3: 400 * time.Millisecond, 6: 3200 * time.Millisecond,
		7: 5 * time.Second, 8: 5 * time.Second, 1000: 5 * time.Second,
	} {
		shortest, longest := time.Hour, time.Duration(0)
		for range 10_000 {
			d := Pause(failures)
			shortest, longest = min(shortest, d), max(longest, d)
		}
		if shortest < limit/2 || shortest > limit*6/10 || longest > limit || longest < limit*9/10 {
			t.Errorf("after %d failures: from %v to %v, want half of %v to all", failures, shortest, longest, limit)
		}
	}
}

func TestBackoffGrowsUntilItBeginsAnew(t *testing.T) {
	longest := func(b *Backoff) (d time.Duration) {
		was := *b
		for range 1000 {
			*b = was
			d = max(d, b.Next())
		}
		return d
	}
	var b Backoff
	for _, limit := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
		if d := longest(&b); d > limit || d < limit*9/10 {
			t.Errorf("up to %v, want %v", d, limit)
		}
	}
	b = Backoff{}
	if d := longest(&b); d > 100*time.Millisecond {
		t.Errorf("%v after a success", d)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Backoff
		began := time.Now()
		if !b.Wait(t.Context()) || time.Since(began) < 50*time.Millisecond {
			t.Error("it did not wait")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if Sleep(ctx, time.Hour) || time.Since(began) != time.Second {
			t.Errorf("it waited %v", time.Since(began))
		}
		if b.Wait(ctx) {
			t.Error("it waited although its context had ended")
		}
	})
}
