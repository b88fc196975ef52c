// Package window keeps, for one lane of a log-like broker, the set of finished messages, though
// they finish in any order. A driver commits the first unfinished position and, beyond it, the
// finished positions. So after a crash no finished message is handled again.
package window

import (
	"slices"
	"sort"
)

// Window is the state of one lane. The zero value is not ready: use New or Restore. It is not safe
// for concurrent use.
//
// It holds the unfinished positions only (and some finished ones between them, until it is
// compacted). So the messages in flight bound its size, not the distance by which one slow message
// lags behind.
type Window struct {
	next    int64   // all positions below are known here: delivered, or skipped for ever
	queue   []entry // in the order of positions; queue[head] is unfinished
	head    int     // entries before it are finished
	done    int     // the number of finished entries from head on
	skip    []int64 // unfinished positions of an earlier ownership that are still to be read again, in order
	skipTo  int64   // positions below are finished, save those in skip
	version uint64
}

type entry struct {
	pos  int64
	done bool
}

// New returns a window that begins at position next.
func New(next int64) *Window { return &Window{next: next, skipTo: next} }

// Add notes that the message at pos will be delivered. It returns false if the message was finished
// under an earlier ownership and must not be delivered again. Positions must grow from call to
// call; gaps are fine.
func (w *Window) Add(pos int64) bool {
	w.next = pos + 1
	if pos < w.skipTo {
		for len(w.skip) > 0 && w.skip[0] < pos {
			w.skip = w.skip[1:] // gone from the log, so it will never come
		}
		if len(w.skip) == 0 || w.skip[0] != pos {
			return false
		}
		w.skip = w.skip[1:]
	}
	w.queue = append(w.queue, entry{pos: pos})
	return true
}

// open are the entries that are not finished, and finished ones between them.
func (w *Window) open() []entry { return w.queue[w.head:] }

// Advance notes that the lane has nothing more to deliver below next, beyond the added messages:
// the records there are control records, compacted away, or another's.
func (w *Window) Advance(next int64) {
	before := w.Position()
	w.next = max(w.next, next)
	if w.Position() != before {
		w.version++
	}
}

// Done finishes the message at pos. It returns false if pos is not open, as when it is finished
// already.
func (w *Window) Done(pos int64) bool {
	open := w.open()
	i := sort.Search(len(open), func(i int) bool { return open[i].pos >= pos })
	if i == len(open) || open[i].pos != pos || open[i].done {
		return false
	}
	open[i].done = true
	w.done++
	w.version++
	for w.head < len(w.queue) && w.queue[w.head].done {
		w.head++
		w.done--
	}
	// Room is made when at least half of it is waste, so that each entry is moved about once.
	if w.head == len(w.queue) || w.head+w.done > max(64, len(w.queue)/2) {
		w.compact()
	}
	return true
}

// compact forgets the finished entries: a position below next and not in the queue is finished.
func (w *Window) compact() {
	kept := w.queue[:0]
	for _, e := range w.open() {
		if !e.done {
			kept = append(kept, e)
		}
	}
	w.queue, w.head, w.done = kept, 0, 0
}

// Position returns the first unfinished position, where a new owner starts to read.
func (w *Window) Position() int64 {
	if w.head < len(w.queue) {
		return w.queue[w.head].pos
	}
	if len(w.skip) > 0 && w.next < w.skipTo {
		return max(w.next, w.skip[0])
	}
	return w.End()
}

// End returns the position up to which the window knows the finished positions.
func (w *Window) End() int64 { return max(w.next, w.skipTo) }

// Pending returns how many positions below End a new owner has still to read.
func (w *Window) Pending() int { return len(w.skip) }

// Again returns the window of a new ownership in which unfinished messages are delivered again. It
// forgets positions from end on, because other messages may be there.
func (w *Window) Again(end int64) *Window {
	a := New(min(w.Position(), end))
	if end = min(end, w.End()); end <= a.next {
		return a
	}
	a.skipTo = end
	for _, e := range w.open() {
		if !e.done && e.pos < end {
			a.skip = append(a.skip, e.pos)
		}
	}
	for _, pos := range w.skip {
		if w.next <= pos && pos < end {
			a.skip = append(a.skip, pos)
		}
	}
	return a
}

// Open returns the number of delivered messages that are not finished.
func (w *Window) Open() int { return len(w.queue) - w.head - w.done }

// Version changes whenever a message finishes, or Advance moves the position, so that a committer
// can tell whether there is anything new.
func (w *Window) Version() uint64 { return w.version }

// Clone returns a copy with a life of its own.
func (w *Window) Clone() *Window {
	c := *w
	c.queue, c.skip = slices.Clone(w.queue), slices.Clone(w.skip)
	return &c
}
