package sqllog

import (
	"testing"

	"github.com/millrace-go/millrace/internal/window"
)

// TestSettlementIsComplete: a window that is too scattered for its column does not name all that is
// done. The transaction must not commit it, or a crash would repeat a message that had its effect.
func TestSettlementIsComplete(t *testing.T) {
	for scattered, want := range map[int64]bool{1: true, 500: true, 100_000: false} {
		w := window.New(1)
		for pos := range 2 * scattered {
			w.Add(pos + 1)
			if pos%2 == 1 {
				w.Done(pos + 1)
			}
		}
		l := &settled{window: w, done: []int64{2 * scattered}}
		l.progress = Progress{Position: w.Position(), Window: w.Encode(nil, exactWindowBytes)}
		if got := l.isComplete(); got != want {
			t.Errorf("%d messages, each behind an unfinished one: complete is %v", scattered, got)
		}
	}
}
