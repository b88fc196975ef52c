package window

import (
	"encoding/binary"
	"errors"
)

// The encoding is a format byte, then as varints: how far beyond Position everything is finished, and the unfinished
// positions in between, each as the distance from the one before. Nothing finished beyond Position is no bytes.
const format = 1

var errFormat = errors.New("window: not an encoded window")

// Encode appends what is finished beyond Position to dst, in at most limit bytes. If there are more unfinished
// positions than fit, the end of the window is left out: a crash would then repeat what is finished there.
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
			end = pos // what is unfinished from here on is not listed, so the claim ends here
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

// onlyOpen says whether each position from base to end is open: the encoding would say nothing.
func onlyOpen(w *Window, base, end int64) bool { return int64(w.Open()+len(w.skip)) >= end-base }

// Restore returns the window that a lane's new owner starts with: position is the committed one, and encoded what
// Encode wrote beside it. On an error, which a foreign or damaged encoding gives, it is New(position).
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
