package readahead

import (
	"slices"
	"testing"
)

func TestQueueTakesWithinItsBounds(t *testing.T) {
	all := func(int) bool { return true }
	for _, c := range []struct {
		name        string
		sizes       []int // of the messages 0, 1, …
		n, maxBytes int
		give        func(int) bool
		want        []int
		bytesLeft   int
	}{
		{"nothing is there", nil, 10, 100, all, nil, 0},
		{"all fit", []int{10, 20, 30}, 10, 100, all, []int{0, 1, 2}, 0},
		{"by number", []int{10, 20, 30}, 2, 100, all, []int{0, 1}, 30},
		{"none is asked for", []int{10}, 0, 100, all, nil, 10},
		{"by bytes", []int{10, 20, 30}, 10, 59, all, []int{0, 1}, 30},
		{"exactly", []int{10, 20, 30}, 10, 60, all, []int{0, 1, 2}, 0},
		{"a small one does not overtake", []int{10, 90, 1}, 10, 50, all, []int{0}, 91},
		{"a large first one comes alone", []int{500, 1}, 10, 100, all, []int{0}, 1},
		{"what is refused does not count", []int{500, 10, 20, 30}, 2, 30, func(i int) bool { return i > 0 }, []int{1, 2}, 30},
		{"all are refused", []int{10, 20}, 10, 5, func(int) bool { return false }, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var q Queue[int]
			for i, size := range c.sizes {
				q.Add(i, size)
			}
			var got []int
			n := q.Take(c.n, c.maxBytes, func(i int) bool {
				if !c.give(i) {
					return false
				}
				got = append(got, i)
				return true
			})
			if !slices.Equal(got, c.want) || n != len(c.want) || q.Bytes() != c.bytesLeft {
				t.Errorf("took %v (%d), %d bytes are left", got, n, q.Bytes())
			}
		})
	}
}

func TestQueueDropsWhatBelongsToAnEndedOwnership(t *testing.T) {
	var q Queue[string]
	take := func(n int) (got string) {
		q.Take(n, 1000, func(s string) bool {
			got += s
			return true
		})
		return got
	}
	for _, s := range []string{"a", "B", "c", "D", "e"} {
		q.Add(s, 10)
	}
	got := take(1)
	q.Drop(func(s string) bool { return s == "B" || s == "D" })
	if q.Len() != 2 || q.Bytes() != 20 {
		t.Errorf("%d messages, %d bytes", q.Len(), q.Bytes())
	}
	q.Add("f", 10)
	if got += take(10); got != "acef" || q.Len() != 0 || q.Bytes() != 0 {
		t.Errorf("took %q; %d messages are left, %d bytes", got, q.Len(), q.Bytes())
	}
}

func TestQueueKeepsNoMessageAlive(t *testing.T) {
	var q Queue[*int]
	next, taken := 0, 0
	for range 1000 { // more come than are taken, so that the queue is never empty
		for range 3 {
			v := next
			q.Add(&v, 1)
			next++
		}
		q.Take(2, 1000, func(v *int) bool {
			if *v != taken {
				t.Fatalf("took %d, want %d", *v, taken)
			}
			taken++
			return true
		})
	}
	q.Drop(func(v *int) bool { return *v%2 == 0 })
	alive := 0
	for _, i := range q.items[:cap(q.items)] {
		if i.value != nil {
			alive++
		}
	}
	if alive != q.Len() || q.Len() != 500 {
		t.Errorf("%d messages wait, and %d are kept", q.Len(), alive)
	}
}

func TestQueueTakesWithoutAllocating(t *testing.T) {
	var q Queue[int]
	q.Add(0, 1)
	sum := 0
	if n := testing.AllocsPerRun(100, func() {
		q.Add(1, 1)
		q.Take(1, 100, func(v int) bool {
			sum += v
			return true
		})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
