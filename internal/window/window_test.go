package window

import (
	"math/rand/v2"
	"testing"
)

// FuzzRestore delivers and finishes at random, crashes at random, and checks against a plain model
// that nothing unfinished is skipped and, as long as the encoding had room, nothing finished is
// delivered again.
func FuzzRestore(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var log []int64 // the lane's records: positions with gaps
		pos := rnd.Int64N(100)
		for range 300 {
			pos += 1 + rnd.Int64N(1+rnd.Int64N(9))
			log = append(log, pos)
		}
		limit := 4096
		if seed%4 == 0 {
			limit = 40
		}
		finished := map[int64]bool{}
		w := New(log[0])
		for crash := 0; crash < 6; crash++ {
			delivered := map[int64]bool{}
			var open []int64
			read := 0
			for read < len(log) && log[read] < w.Position() {
				if !finished[log[read]] {
					t.Fatalf("position %d would skip %d, which is not finished", w.Position(), log[read])
				}
				read++
			}
			for range rnd.IntN(200) {
				if read < len(log) && rnd.IntN(2) == 0 {
					p := log[read]
					read++
					if w.Add(p) {
						if finished[p] && limit > 1000 {
							t.Fatalf("%d was delivered again although finished", p)
						}
						delivered[p] = true
						open = append(open, p)
					} else if !finished[p] {
						t.Fatalf("%d was skipped although not finished", p)
					}
				} else if len(open) > 0 {
					i := rnd.IntN(len(open))
					if !w.Done(open[i]) {
						t.Fatalf("%d is not open", open[i])
					}
					if w.Done(open[i]) {
						t.Fatalf("%d was finished twice", open[i])
					}
					finished[open[i]] = true
					open = append(open[:i], open[i+1:]...)
				}
				if w.Open() != len(open) {
					t.Fatalf("%d open, want %d", w.Open(), len(open))
				}
			}
			if rnd.IntN(3) == 0 { // the log was cut off, or read anew
				end := log[rnd.IntN(len(log))]
				w = w.Again(end)
				for p := range finished {
					if p >= end {
						delete(finished, p)
					}
				}
				continue
			}
			enc := w.Encode(nil, limit)
			if len(enc) > limit {
				t.Fatalf("encoding of %d bytes", len(enc))
			}
			var err error
			if w, err = Restore(w.Position(), enc); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzDecode feeds foreign bytes: an error or a window, and the window starts at the position in
// any case.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{1, 200, 1, 3}, int64(7))
	f.Add([]byte("foreign"), int64(0))
	f.Fuzz(func(t *testing.T, enc []byte, position int64) {
		if position < 0 || position > 1<<60 {
			return
		}
		w, err := Restore(position, enc)
		if len(enc) > 0 && enc[0] != format && err == nil {
			t.Fatal("a foreign format was accepted")
		}
		if !w.Add(position) {
			t.Fatal("the position itself must never be skipped")
		}
	})
}

// TestMemoryStaysSmall lets one message lag behind a million others.
func TestMemoryStaysSmall(t *testing.T) {
	w := New(0)
	w.Add(0)
	for pos := int64(1); pos < 1_000_000; pos++ {
		w.Add(pos)
		w.Done(pos)
	}
	if len(w.queue) > 1000 {
		t.Errorf("%d entries for one open message", len(w.queue))
	}
	if enc := w.Encode(nil, 4096); len(enc) > 16 {
		t.Errorf("%d bytes for one open message", len(enc))
	}
	w, _ = Restore(w.Position(), w.Encode(nil, 4096))
	if !w.Add(0) || w.Add(1) || w.Add(999_999) || !w.Add(1_000_000) {
		t.Error("only 0 and what comes after is to be delivered")
	}
}

func BenchmarkAddDone(b *testing.B) {
	w := New(0)
	b.ReportAllocs()
	for pos := int64(0); b.Loop(); pos++ {
		w.Add(pos)
		if pos >= 1000 {
			w.Done(pos - 1000)
		}
	}
}
