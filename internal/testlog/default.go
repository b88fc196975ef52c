package testlog

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
)

// Strict returns a run of m with a default log ([slog.Default]) in which a record of level WARN or
// ERROR fails the run, unless a test that runs has said [Expect]. Call it from TestMain. The log
// goes to standard error.
func Strict(m Runner) Runner { return strict{m} }

// Runner is what [testing.M] is to those who run it.
type Runner interface{ Run() int }

type strict struct{ m Runner }

// Run implements Runner.
func (s strict) Run() int {
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(slog.New(&defaultHandler{slog.NewTextHandler(os.Stderr, nil)}))
	code := s.m.Run()
	expected.mu.Lock()
	defer expected.mu.Unlock()
	if len(expected.surprises) > 0 {
		fmt.Fprintf(os.Stderr, "testlog: the default log has records that no test expects:\n%s\n", strings.Join(expected.surprises, "\n"))
		code = max(code, 1)
	}
	expected.surprises = nil
	return code
}

// expected has the texts that the default log may have.
var expected struct {
	mu        sync.Mutex
	texts     map[string]int // how many running tests expect each
	surprises []string
}

// Expect allows records of level WARN or ERROR whose text contains one of texts in the default log,
// until t ends. It says nothing of a log that a test makes with [New].
func Expect(t testing.TB, texts ...string) {
	expected.mu.Lock()
	defer expected.mu.Unlock()
	if expected.texts == nil {
		expected.texts = map[string]int{}
	}
	for _, text := range texts {
		expected.texts[text]++
	}
	t.Cleanup(func() {
		expected.mu.Lock()
		defer expected.mu.Unlock()
		for _, text := range texts {
			if expected.texts[text]--; expected.texts[text] == 0 {
				delete(expected.texts, text)
			}
		}
	})
}

type defaultHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h *defaultHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		judge(r)
	}
	return h.Handler.Handle(ctx, r)
}

func judge(r slog.Record) {
	expected.mu.Lock()
	defer expected.mu.Unlock()
	for text := range expected.texts {
		if strings.Contains(r.Message, text) {
			return
		}
	}
	line := fmt.Sprintf("%v %s", r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	expected.surprises = append(expected.surprises, line)
}

// WithAttrs implements slog.Handler.
func (h *defaultHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &defaultHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h *defaultHandler) WithGroup(name string) slog.Handler {
	return &defaultHandler{h.Handler.WithGroup(name)}
}
