package testlog_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/internal/testlog"
)

// recording is a test that keeps its failures and output.
type recording struct {
	testing.TB
	out      bytes.Buffer
	failures []string
	cleanups []func()
}

func (r *recording) Helper()           {}
func (r *recording) Output() io.Writer { return &r.out }
func (r *recording) Cleanup(f func())  { r.cleanups = append(r.cleanups, f) }

func (r *recording) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func TestUnexpectedRecordsFailTheTest(t *testing.T) {
	r := &recording{}
	l := testlog.New(r, "trying again", "handler failed").With("topic", "t").WithGroup("g")
	l.Debug("a detail")
	l.Info("news")
	l.Warn("parking failed; trying again", "n", 1)
	l.Error("handler failed")
	if len(r.failures) > 0 {
		t.Errorf("failed for what it expects: %v", r.failures)
	}
	l.Warn("surprise")
	l.Error("disaster")
	want := []string{
		"the log has a record that the test does not expect: WARN surprise",
		"the log has a record that the test does not expect: ERROR disaster",
	}
	if !slices.Equal(r.failures, want) {
		t.Errorf("failures are %q, want %q", r.failures, want)
	}
	out := r.out.String()
	if strings.Contains(out, "a detail") || !strings.Contains(out, `msg="parking failed; trying again" topic=t g.n=1`) || strings.Count(out, "\n") != 5 {
		t.Errorf("the output is %q", out)
	}
}

func TestAllAllowed(t *testing.T) {
	r := &recording{}
	testlog.New(r, "").Log(t.Context(), slog.LevelError, "anything")
	if len(r.failures) > 0 {
		t.Error(r.failures)
	}
}

func TestNothingAfterTheEnd(t *testing.T) {
	r := &recording{}
	l := testlog.New(r)
	for _, f := range r.cleanups {
		f()
	}
	l.Error("too late")
	if len(r.failures) > 0 || r.out.Len() > 0 {
		t.Errorf("failures %v, output %q", r.failures, r.out.String())
	}
}
