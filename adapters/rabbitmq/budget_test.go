package rabbitmq

import (
	"context"
	"testing"
	"testing/synctest"
)

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := newBudget(3, 100)
		if !b.try(60) || b.try(60) || !b.try(40) || b.try(1) {
			t.Fatal("the bytes are not bounded")
		}
		b.release(60)
		if !b.try(1) || !b.try(1) || b.try(1) {
			t.Fatal("the items are not bounded")
		}
		// Those that wait are served in order, and one that gives up lets those behind it pass.
		granted := make(chan int, 3)
		impatient, cancel := context.WithCancel(ctx)
		go func() {
			if b.acquire(impatient, nil, 200) {
				t.Error("granted")
			}
		}()
		synctest.Wait()
		for i := range 2 {
			go func() {
				if b.acquire(ctx, nil, 10) {
					granted <- i
				}
			}()
			synctest.Wait()
		}
		b.release(1)
		synctest.Wait()
		if len(granted) != 0 || b.try(1) {
			t.Fatal("somebody overtook")
		}
		cancel()
		synctest.Wait()
		if len(granted) != 1 || <-granted != 0 {
			t.Fatal("the next is not served")
		}
		b.release(1)
		synctest.Wait()
		if <-granted != 1 {
			t.Fatal("the last is not served")
		}
		for _, size := range []int{40, 10, 10} {
			b.release(size)
		}
		// One that is larger than all goes alone.
		if !b.try(500) || b.try(1) {
			t.Fatal("oversize")
		}
		closed := make(chan struct{})
		close(closed)
		if b.acquire(ctx, closed, 1) {
			t.Fatal("granted after the end")
		}
		b.release(500)
		if b.items != 3 || b.bytes != 100 || len(b.waiting) != 0 {
			t.Errorf("%+v", b)
		}
	})
}
