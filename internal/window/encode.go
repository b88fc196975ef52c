package window

import (
	"encoding/binary"
	"errors"
)

// The encoding is a format byte, then varints: the length of a range beyond Position, and the
// unfinished positions in it, each as the distance from the one before. All other positions in the
// range are finished. No bytes: nothing beyond Position is finished.
const format = 1

var errFormat = errors.New("window: not an encoded window")

// Encode appends the finished positions beyond Position to dst, in at most limit bytes. If more
// unfinished positions exist than fit, it leaves out the end of the window: after a crash, messages
// finished there repeat.
func (w *Window) Encode(dst []byte, limit int) []byte {
	base := w.Position()
	end := w.End()
	last := base // Position itself is unfinished, or there is nothing beyond it
	if end <= base+1 {
		return dst
	}
	var list []byte
	add := func(pos int64) bool {
		if pos == base {
			return true
		}
		if len(list) > limit-1-2*binary.MaxVarintLen64 {
			end = pos // positions from here on are not listed, so the claim ends here
			return false
		}
		list = binary.AppendUvarint(list, uint64(pos-last))
		last = pos
		return true
	}
	fits := true
	for _, e := range w.open() {
		if fits && !e.done {
			fits = add(e.pos)
		}
	}
	for _, pos := range w.skip {
		if fits && pos >= w.next {
			fits = add(pos)
		}
	}
	if last+1 == end && onlyOpen(w, base, end) {
		return dst // nothing in between is finished
	}
	dst = append(dst, format)
	dst = binary.AppendUvarint(dst, uint64(end-base))
	return append(dst, list...)
}

// onlyOpen reports whether each position from base to end is open: the encoding would say nothing.
func onlyOpen(w *Window, base, end int64) bool { return int64(w.Open()+len(w.skip)) >= end-base }

// Restore returns the first window of a lane's new owner. position is the committed position, and
// encoded is Encode's result beside it. On an error, which a foreign or damaged encoding gives, it
// returns New(position).
func Restore(position int64, encoded []byte) (*Window, error) {
	w := New(position)
	if len(encoded) == 0 {
		return w, nil
	}
	if encoded[0] != format {
		return w, errFormat
	}
	rest := encoded[1:]
	span, n := binary.Uvarint(rest)
	if n <= 0 || span > 1<<62 {
		return w, errFormat
	}
	rest = rest[n:]
	end := position + int64(span)
	skip := []int64{position}
	for last := position; len(rest) > 0; {
		d, n := binary.Uvarint(rest)
		if n <= 0 || d == 0 || d > uint64(end-last) {
			return w, errFormat
		}
		rest = rest[n:]
		last += int64(d)
		if last >= end {
			return w, errFormat
		}
		skip = append(skip, last)
	}
	w.skip, w.skipTo = skip, end
	return w, nil
}
