package budget

import (
	"context"
	"testing"
	"testing/synctest"
)

func TestTryTakeKeepsToTheBounds(t *testing.T) {
	for _, c := range []struct {
		name         string
		items, bytes int
		taken        []int
		size         int
		want         bool
	}{
		{"nothing is under way", 3, 100, nil, 60, true},
		{"the last byte", 3, 100, []int{60}, 40, true},
		{"one byte too much", 3, 100, []int{60}, 41, false},
		{"the last item", 3, 100, []int{1, 1}, 1, true},
		{"one item too much", 3, 100, []int{1, 1, 1}, 1, false},
		{"a large item goes alone", 3, 100, nil, 500, true},
		{"a large item does not go with others", 3, 100, []int{1}, 500, false},
		{"nothing goes with a large item", 3, 100, []int{500}, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := New(c.items, c.bytes)
			for _, size := range c.taken {
				if !b.TryTake(size) {
					t.Fatalf("%d was not granted", size)
				}
			}
			if got := b.TryTake(c.size); got != c.want {
				t.Errorf("%d: %v", c.size, got)
			} else if got {
				b.Give(c.size)
			}
			for _, size := range c.taken {
				b.Give(size)
			}
			if !b.Idle() || b.items != c.items || b.bytes != c.bytes {
				t.Errorf("when all is given back: %+v", b)
			}
		})
	}
}

func TestTakeServesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(3, 100)
		b.TryTake(60)
		b.TryTake(40)
		served := make(chan int, 3)
		for _, size := range []int{70, 20, 10} { // the last two would fit before the first
			go func() {
				if b.Take(t.Context(), nil, size) {
					served <- size
				}
			}()
			synctest.Wait()
		}
		b.Give(40)
		synctest.Wait()
		if len(served) != 0 || b.TryTake(1) {
			t.Fatal("somebody overtook")
		}
		b.Give(60)
		synctest.Wait()
		if len(served) != 3 || b.TryTake(1) {
			t.Errorf("%d were served", len(served))
		}
		for _, size := range []int{70, 20, 10} {
			b.Give(size)
		}
		if !b.Idle() {
			t.Error("it is not idle when all is given back")
		}
	})
}

func TestTakeGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(3, 100)
		b.TryTake(60)
		ctx, cancel := context.WithCancel(t.Context())
		closed := make(chan struct{})
		outcomes := make(chan bool, 3)
		go func() { outcomes <- b.Take(ctx, nil, 200) }()
		synctest.Wait()
		go func() { outcomes <- b.Take(t.Context(), closed, 41) }()
		synctest.Wait()
		go func() { outcomes <- b.Take(t.Context(), nil, 40) }()
		synctest.Wait()
		if b.TryTake(1) || len(outcomes) != 0 {
			t.Fatal("somebody overtook")
		}
		cancel()
		synctest.Wait()
		if len(outcomes) != 1 || <-outcomes {
			t.Fatal("the first does not give up with its context, or others passed")
		}
		close(closed)
		synctest.Wait()
		if len(outcomes) != 2 {
			t.Fatal("the second does not give up, or the third does not pass")
		}
		for range 2 {
			if <-outcomes {
				b.Give(40)
			}
		}
		b.Give(60)
		if !b.Idle() || b.bytes != 100 || len(b.waiting) != 0 {
			t.Errorf("%+v", b)
		}
	})
}
