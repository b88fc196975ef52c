package testlog

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Lines makes a logger that appends a line "second level text attributes" to lines for each record,
// from INFO on. Seconds count from the call. It leaves out the attributes of the named keys.
func Lines(lines *[]string, without ...string) *slog.Logger {
	return slog.New(&lineHandler{lines: lines, without: without, start: time.Now()})
}

type lineHandler struct {
	without []string
	start   time.Time

	mu    sync.Mutex
	lines *[]string
}

// Enabled implements slog.Handler.
func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	line := fmt.Sprint(int(time.Since(h.start).Seconds()), " ", r.Level, " ", r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if !slices.Contains(h.without, a.Key) {
			line += " " + a.String()
		}
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	*h.lines = append(*h.lines, line)
	return nil
}

// WithAttrs implements slog.Handler. The lines have the attributes of records only.
func (h *lineHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements slog.Handler, as WithAttrs.
func (h *lineHandler) WithGroup(string) slog.Handler { return h }
