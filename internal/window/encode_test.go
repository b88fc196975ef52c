package window

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"testing"
)

// made returns a window that has delivered 10 to 10+n-1 and finished some of them.
func made(n int64, finished ...int64) *Window {
	w := New(10)
	for pos := int64(10); pos < 10+n; pos++ {
		w.Add(pos)
	}
	for _, pos := range finished {
		w.Done(pos)
	}
	return w
}

// TestEncoding holds the bytes: they are in users' brokers and databases, so they must be read for
// ever.
func TestEncoding(t *testing.T) {
	for _, c := range []struct {
		name string
		w    *Window
		want []byte
	}{
		{"nothing was delivered", New(10), nil},
		{"all is finished", made(3, 10, 11, 12), nil},
		{"one is open", made(1), nil},
		{"all are open", made(4), nil},
		{"the first is finished", made(4, 10), nil},
		{"all but the first", made(3, 11, 12), []byte{format, 3}},
		{"the last", made(3, 12), []byte{format, 3, 1}},
		{"one in the middle", made(3, 11), []byte{format, 3, 2}},
		{"every other one", made(6, 11, 13, 15), []byte{format, 6, 2, 2}},
		{"two at the end are open", made(5, 11, 12), []byte{format, 5, 3, 1}},
		{"a finished one before the compaction", made(5, 10, 12), []byte{format, 4, 2, 1}},
		{"a distance of two bytes", made(300, seq(11, 308)...), []byte{format, 0xac, 2, 0xab, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.w.Encode(nil, 4096); !bytes.Equal(got, c.want) {
				t.Errorf("encoded as % x, want % x", got, c.want)
			}
			if got := c.w.Encode([]byte("kept"), 4096); !bytes.Equal(got, append([]byte("kept"), c.want...)) {
				t.Errorf("behind other bytes as % x", got)
			}
			r, err := Restore(c.w.Position(), c.want)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Encode(nil, 4096); !bytes.Equal(got, c.want) {
				t.Errorf("restored, and encoded as % x, want % x", got, c.want)
			}
			if r.Position() != c.w.Position() {
				t.Errorf("restored at %d, want %d", r.Position(), c.w.Position())
			}
		})
	}
}

func seq(from, to int64) (s []int64) {
	for pos := from; pos <= to; pos++ {
		s = append(s, pos)
	}
	return s
}

// deliveredAgain restores and adds all positions from the committed one up to end.
func deliveredAgain(t *testing.T, position int64, encoded []byte, end int64) (again []int64) {
	t.Helper()
	w, err := Restore(position, encoded)
	if err != nil {
		t.Fatal(err)
	}
	for pos := position; pos < end; pos++ {
		if w.Add(pos) {
			again = append(again, pos)
		}
	}
	return again
}

// TestEncodingRepeatsTheUnfinished: after a crash each unfinished message comes again, and no
// other.
func TestEncodingRepeatsTheUnfinished(t *testing.T) {
	w := made(8, 11, 13, 14, 17)
	want := []int64{10, 12, 15, 16, 18, 19}
	if got := deliveredAgain(t, w.Position(), w.Encode(nil, 4096), 20); !slices.Equal(got, want) {
		t.Errorf("%v come again, want %v", got, want)
	}
}

// TestEncodingOfAnUnreadRest: a second owner that has read only a part passes on the first one's
// finished positions.
func TestEncodingOfAnUnreadRest(t *testing.T) {
	w := made(8, 11, 13, 14, 17)
	second, err := Restore(w.Position(), w.Encode(nil, 4096))
	if err != nil {
		t.Fatal(err)
	}
	for pos := int64(10); pos < 13; pos++ { // 10 and 12 are delivered
		second.Add(pos)
	}
	second.Done(10)
	if second.Position() != 12 || second.Open() != 1 {
		t.Fatalf("position %d, %d open", second.Position(), second.Open())
	}
	want := []int64{12, 15, 16, 18}
	if got := deliveredAgain(t, 12, second.Encode(nil, 4096), 19); !slices.Equal(got, want) {
		t.Errorf("%v come again, want %v", got, want)
	}
	second.Done(12)
	if second.Position() != 15 {
		t.Errorf("position %d, want the next unfinished one that was not read again", second.Position())
	}
}

// TestEncodingLimit: the claim ends where the list of unfinished positions has no room, and never
// in the middle of a finished stretch that the reader would skip.
func TestEncodingLimit(t *testing.T) {
	var finished []int64
	for pos := int64(11); pos < 210; pos += 2 {
		finished = append(finished, pos)
	}
	w := made(200, finished...)
	full := w.Encode(nil, 4096)
	for limit := 1 + 2*binary.MaxVarintLen64; limit <= len(full)+2*binary.MaxVarintLen64; limit++ {
		got := w.Encode(nil, limit)
		if len(got) > limit {
			t.Fatalf("%d bytes, limit %d", len(got), limit)
		}
		again := deliveredAgain(t, 10, got, 210)
		n := 0
		for _, pos := range again {
			if slices.Contains(finished, pos) {
				continue
			}
			n++
		}
		if n != 100 {
			t.Fatalf("limit %d: %d of 100 unfinished messages come again", limit, n)
		}
		if listed := len(got) - 3; listed < limit-1-2*binary.MaxVarintLen64 && len(got) < len(full) {
			t.Fatalf("limit %d: only %d positions are listed", limit, listed)
		}
	}
	if got := w.Encode(nil, len(full)+2*binary.MaxVarintLen64); !bytes.Equal(got, full) {
		t.Errorf("with room for all, %d of %d bytes", len(got), len(full))
	}
}

// TestDamagedEncodings: each is an error, and all from the position on is delivered.
func TestDamagedEncodings(t *testing.T) {
	for name, encoded := range map[string][]byte{
		"another format":              {2, 5, 1},
		"no span":                     {format},
		"a span cut short":            {format, 0x80},
		"a span that does not fit":    append([]byte{format}, binary.AppendUvarint(nil, 1<<62+1)...),
		"a span of eleven bytes":      append([]byte{format}, bytes.Repeat([]byte{0xff}, 11)...),
		"a distance cut short":        {format, 9, 0x80},
		"a distance of nothing":       {format, 9, 2, 0},
		"a position behind the end":   {format, 9, 10},
		"a position at the end":       {format, 9, 9},
		"the second behind the end":   {format, 9, 5, 5},
		"a distance that overflows":   append([]byte{format, 9}, binary.AppendUvarint(nil, math.MaxUint64)...),
		"a distance of another width": append([]byte{format, 9}, bytes.Repeat([]byte{0xff}, 11)...),
	} {
		t.Run(name, func(t *testing.T) {
			w, err := Restore(10, encoded)
			if !errors.Is(err, errFormat) {
				t.Errorf("error %v", err)
			}
			for pos := int64(10); pos < 20; pos++ {
				if !w.Add(pos) {
					t.Errorf("%d is skipped", pos)
				}
			}
		})
	}
}

// TestLargestEncodings are the last ones that are none too large.
func TestLargestEncodings(t *testing.T) {
	if _, err := Restore(0, append([]byte{format}, binary.AppendUvarint(nil, 1<<62)...)); err != nil {
		t.Error(err)
	}
	w, err := Restore(10, []byte{format, 9, 8})
	if err != nil {
		t.Fatal(err)
	}
	if w.Position() != 10 || !w.Add(10) || w.Add(17) || !w.Add(18) || !w.Add(19) {
		t.Error("only 10 and 18, and what comes after, is to be delivered")
	}
}

// TestPositions follows the position through gaps, skips and control records.
func TestPositions(t *testing.T) {
	w := New(10)
	if w.Position() != 10 || w.Open() != 0 {
		t.Fatalf("at first %d, %d open", w.Position(), w.Open())
	}
	before := w.Version()
	w.Advance(12)
	if w.Position() != 12 || w.Version() == before {
		t.Errorf("after control records %d, version %d", w.Position(), w.Version())
	}
	before = w.Version()
	w.Advance(11)
	if w.Position() != 12 || w.Version() != before {
		t.Errorf("a step back leads to %d, version %d", w.Position(), w.Version())
	}
	w.Add(15)
	w.Add(16)
	before = w.Version()
	w.Advance(20) // behind the open positions
	if w.Position() != 15 || w.Version() != before {
		t.Errorf("position %d, version %d, want 15 as before", w.Position(), w.Version())
	}
	if !w.Done(16) || w.Version() == before || w.Position() != 15 || w.Open() != 1 {
		t.Errorf("after the second: position %d, %d open", w.Position(), w.Open())
	}
	if w.Done(16) || w.Done(14) || w.Done(17) {
		t.Error("finished, although it was not open")
	}
	if !w.Done(15) || w.Position() != 20 || w.Open() != 0 {
		t.Errorf("at the end: position %d, %d open", w.Position(), w.Open())
	}
}

// TestClone: a copy knows what its original knew, and changes to one leave the other alone.
func TestClone(t *testing.T) {
	w, err := Restore(10, []byte{format, 9, 5})
	if err != nil {
		t.Fatal(err)
	}
	w.Add(10)
	c := w.Clone()
	if !c.Done(10) || c.Position() != 15 || !c.Add(15) {
		t.Errorf("the copy is at %d", c.Position())
	}
	if w.Position() != 10 || w.Open() != 1 || !w.Add(15) {
		t.Errorf("the original is at %d, %d open", w.Position(), w.Open())
	}
}

// TestCompaction: entries are moved when half of them are waste, not for each message and not
// never.
func TestCompaction(t *testing.T) {
	w := New(0)
	for pos := range int64(200) {
		w.Add(pos)
	}
	for pos := int64(1); pos <= 100; pos++ {
		w.Done(pos)
	}
	if len(w.queue) != 200 {
		t.Fatalf("moved at half: %d entries", len(w.queue))
	}
	w.Done(101)
	if len(w.queue) != 99 || w.Open() != 99 || w.Position() != 0 {
		t.Errorf("%d entries, %d open, position %d", len(w.queue), w.Open(), w.Position())
	}
	small := made(64, seq(11, 73)...)
	if len(small.queue) != 64 {
		t.Errorf("a small window was moved: %d entries", len(small.queue))
	}
	small.Done(10)
	if len(small.queue) != 0 || small.Position() != 74 {
		t.Errorf("%d entries when nothing is open, position %d", len(small.queue), small.Position())
	}
}
