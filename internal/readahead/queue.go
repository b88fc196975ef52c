// Package readahead keeps the messages that a driver has read before somebody calls Receive.
package readahead

import "slices"

// Queue holds messages that a driver has read ahead of Receive, in order. The zero value is empty.
// It has no lock: the driver guards it.
type Queue[T any] struct {
	items []item[T]
	head  int // items before it were taken
	bytes int
}

type item[T any] struct {
	value T
	size  int
}

// Len is how many messages wait.
func (q *Queue[T]) Len() int { return len(q.items) - q.head }

// Bytes is the size of the waiting messages together.
func (q *Queue[T]) Bytes() int { return q.bytes }

// Add appends a message of this size.
func (q *Queue[T]) Add(value T, size int) {
	if q.head > 64 && q.head > len(q.items)/2 {
		q.keep(q.items[q.head:])
	}
	q.items = append(q.items, item[T]{value, size})
	q.bytes += size
}

// Take passes messages to give, in order: at most n, and at most maxBytes together, but the first
// may be larger. A message for which give returns false is gone, and does not count. Take returns
// how many count.
func (q *Queue[T]) Take(n, maxBytes int, give func(T) bool) (taken int) {
	for taken < n && q.head < len(q.items) {
		next := q.items[q.head]
		if taken > 0 && next.size > maxBytes {
			break
		}
		q.items[q.head] = item[T]{}
		q.head++
		q.bytes -= next.size
		if give(next.value) {
			taken++
			maxBytes -= next.size
		}
	}
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return taken
}

// Drop removes the messages for which gone returns true: the messages of an ownership that has
// ended.
func (q *Queue[T]) Drop(gone func(T) bool) {
	q.keep(slices.DeleteFunc(q.items[q.head:], func(i item[T]) bool {
		if !gone(i.value) {
			return false
		}
		q.bytes -= i.size
		return true
	}))
}

// keep moves the remaining messages to the front. The rest must not keep messages alive.
func (q *Queue[T]) keep(left []item[T]) {
	n := copy(q.items, left)
	clear(q.items[n:])
	q.items, q.head = q.items[:n], 0
}
