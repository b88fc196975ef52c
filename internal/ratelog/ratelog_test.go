package ratelog_test

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/internal/ratelog"
	"github.com/millrace-go/millrace/internal/testlog"
)

// newLog makes a Log whose lines are "second level text arguments".
func newLog(lines *[]string) *ratelog.Log {
	return ratelog.New(testlog.Lines(lines))
}

func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		log := newLog(&lines)
		for i := range 300 { // 2.5 s
			log.Tell(slog.LevelWarn, "failed", "a", "id", i)
			time.Sleep(time.Second / 120)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		log.Tell(slog.LevelWarn, "failed", "a", "id", "last")
		want := []string{"0 WARN failed id=0", "1 WARN failed id=120 more=119", "2 WARN failed id=240 more=119", "3 WARN failed id=299 more=58", "62 WARN failed id=last"}
		if !slices.Equal(lines, want) {
			t.Errorf("the log has\n%s, want\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestKindsAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		log := newLog(&lines)
		log.Tell(slog.LevelDebug, "not wanted", "a")
		log.Tell(slog.LevelInfo, "failed", "a")
		log.Tell(slog.LevelInfo, "failed", "b")
		log.Tell(slog.LevelInfo, "refused", "a")
		log.Tell(slog.LevelError, "failed", "a", "id", 2) // alone in its second
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []string{"0 INFO failed", "0 INFO failed", "0 INFO refused", "1 ERROR failed id=2"}; !slices.Equal(lines, want) {
			t.Errorf("the log has %q, want %q", lines, want)
		}
	})
}

func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		log := newLog(&lines)
		for i := range 3 {
			log.Tell(slog.LevelWarn, "failed", nil, "id", i)
		}
		log.Flush()
		log.Flush()
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []string{"0 WARN failed id=0", "0 WARN failed id=2 more=1"}; !slices.Equal(lines, want) {
			t.Errorf("the log has %q, want %q", lines, want)
		}
	})
}

// TestFlushAtTheEndOfASilence: whoever comes first writes what was left out, once.
func TestFlushAtTheEndOfASilence(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			var lines []string
			log := newLog(&lines)
			for i := range 3 {
				log.Tell(slog.LevelWarn, "failed", nil, "id", i)
			}
			time.Sleep(ratelog.Every)
			log.Flush()
			synctest.Wait()
			if want := []string{"0 WARN failed id=0", "1 WARN failed id=2 more=1"}; !slices.Equal(lines, want) {
				t.Errorf("the log has %q, want %q", lines, want)
			}
		})
	}
}
