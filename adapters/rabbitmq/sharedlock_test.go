package rabbitmq

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// A caller that comes while the lock is held has it at once. The last holder gives it back, also a
// lock that nobody waits for any more.
func TestSharedLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l sharedLock
		taken, free := 0, true
		got := make(chan error, 1)
		acquire := func() (func(), error) {
			if err := <-got; err != nil {
				return nil, err
			}
			if !free {
				t.Error("taken while it is held")
			}
			taken, free = taken+1, false
			return func() { free = true }, nil
		}
		take := func() func() {
			unlock, err := l.take(t.Context(), acquire)
			if err != nil {
				t.Fatal(err)
			}
			return unlock
		}
		got <- nil
		first := take()
		second := take()
		first()
		if free || taken != 1 {
			t.Errorf("given back by the first of two, taken %d times", taken)
		}
		third := take()
		second()
		third()
		if !free || taken != 1 {
			t.Errorf("free: %v, taken %d times", free, taken)
		}

		failure := errors.New("no")
		got <- failure
		if _, err := l.take(t.Context(), acquire); err != failure {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.take(ctx, acquire); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		got <- nil // too late
		synctest.Wait()
		if !free || taken != 2 {
			t.Errorf("free: %v, taken %d times", free, taken)
		}
		got <- nil
		take()()
		if !free || taken != 3 {
			t.Errorf("free: %v, taken %d times", free, taken)
		}
	})
}
