package testlog_test

import (
	"log/slog"
	"testing"

	"github.com/millrace-go/millrace/internal/testlog"
)

type run func() int

func (r run) Run() int { return r() }

func TestDefaultLog(t *testing.T) {
	before := slog.Default()
	for name, tc := range map[string]struct {
		run  run
		want int
	}{
		"quiet":    {func() int { slog.Info("news"); return 0 }, 0},
		"warns":    {func() int { slog.Warn("handler failed"); return 0 }, 1},
		"fails":    {func() int { slog.With("a", 1).WithGroup("g").Error("handler failed"); return 0 }, 1},
		"failed":   {func() int { return 2 }, 2},
		"expected": {func() int { expecting(t, "handler failed"); return 0 }, 0},
		"other":    {func() int { expecting(t, "poisoned"); return 0 }, 1},
		"too late": {func() int { expecting(t, "handler failed"); slog.Warn("handler failed"); return 0 }, 1},
	} {
		if got := testlog.Strict(tc.run).Run(); got != tc.want {
			t.Errorf("%s: the run ends with %d, want %d", name, got, tc.want)
		}
		if slog.Default() != before {
			t.Fatalf("%s: the default log is still the strict one", name)
		}
	}
}

// expecting logs a warning in a test that expects a text, and ends the test.
func expecting(t *testing.T, text string) {
	r := &recording{TB: t}
	testlog.Expect(r, text)
	slog.Warn("handler failed; trying again")
	for _, f := range r.cleanups {
		f()
	}
}
