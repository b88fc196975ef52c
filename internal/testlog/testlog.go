// Package testlog is a log for tests: a record of level WARN or ERROR that the test does not expect
// fails it.
package testlog

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

// New makes a logger that writes to t's output, from INFO on. A record of level WARN or ERROR fails
// t, unless its text contains one of allowed: "" allows all of them. It drops records after the end
// of t. It works in the bubble of a synctest.
func New(t testing.TB, allowed ...string) *slog.Logger {
	t.Helper()
	l := &log{t: t, allowed: allowed}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.over = true
	})
	return slog.New(&handler{log: l, text: slog.NewTextHandler(l, nil)})
}

// log is the state that all handlers of one New share.
type log struct {
	mu      sync.Mutex
	t       testing.TB
	allowed []string
	over    bool // the test has ended: its output takes nothing any more
}

// Write implements io.Writer for a line of the log.
func (l *log) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		_, _ = l.t.Output().Write(line)
	}
	return len(line), nil
}

// judge fails the test if the record is not expected.
func (l *log) judge(level slog.Level, text string) {
	if level < slog.LevelWarn {
		return
	}
	for _, a := range l.allowed {
		if strings.Contains(text, a) {
			return
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.t.Errorf("the log has a record that the test does not expect: %v %s", level, text)
	}
}

type handler struct {
	log  *log
	text slog.Handler
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.text.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	h.log.judge(r.Level, r.Message)
	return h.text.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.log, h.text.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.log, h.text.WithGroup(name)}
}
