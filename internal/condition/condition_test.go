package condition_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/internal/condition"
	"github.com/millrace-go/millrace/internal/testlog"
)

// newSet makes a Set whose lines are "second level text", with the attributes that do not depend on the date.
func newSet(lines *[]string) *condition.Set {
	return condition.NewSet(testlog.Lines(lines, "since"))
}

func want(t *testing.T, lines []string, want ...string) {
	t.Helper()
	if !slices.Equal(lines, want) {
		t.Errorf("the log has\n%s, want\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

var (
	errRefused = errors.New("connection refused")
	errReset   = errors.New("connection reset")
)

// One WARN and one INFO, however often it fails.
func TestConditionIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		s := newSet(&lines)
		for i := range 50 {
			err := errRefused
			if i > 5 {
				err = errReset
			}
			s.Note("settling failed", err)
			time.Sleep(100 * time.Millisecond)
		}
		if all := s.All(); len(all) != 1 || !errors.Is(all[0].Err, errReset) || time.Since(all[0].Since) != 5*time.Second {
			t.Errorf("conditions: %v", all)
		}
		s.Note("settling failed", nil)
		s.Note("settling failed", nil)
		time.Sleep(time.Minute)
		want(t, lines, "1 WARN settling failed; trying again err=connection reset", "5 INFO over: settling failed lasted=5s")
		if all := s.All(); len(all) != 0 {
			t.Errorf("conditions: %v", all)
		}
	})
}

// Health has a short condition, the log has not.
func TestShortConditionIsNotLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		s := newSet(&lines)
		s.Note("settling failed", errReset)
		if len(s.All()) != 1 {
			t.Error("it is not told of at once")
		}
		time.Sleep(condition.Patience / 2)
		s.Note("settling failed", nil)
		time.Sleep(time.Minute)
		s.Note("settling failed", errReset)
		s.Close()
		time.Sleep(time.Minute)
		want(t, lines)
	})
}

// What follows from a lost connection is not logged beside it, unless it outlasts the outage.
func TestDisconnectedIsToldAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		s := newSet(&lines)
		s.Note("lane 1 cannot be consumed", errReset)
		s.Note(condition.Disconnected, errRefused)
		s.Note("settling failed", errReset)
		time.Sleep(10 * time.Second)
		if len(s.All()) != 3 {
			t.Errorf("conditions: %v", s.All())
		}
		s.Note(condition.Disconnected, nil)
		s.Note("settling failed", nil)
		time.Sleep(10 * time.Second)
		s.Note("lane 1 cannot be consumed", nil)
		want(t, lines, "1 WARN disconnected; trying again err=connection refused", "10 INFO over: disconnected lasted=10s",
			"11 WARN lane 1 cannot be consumed; trying again err=connection reset", "20 INFO over: lane 1 cannot be consumed lasted=20s")
	})
}

type observer []string

func (o *observer) Condition(what string, err error) { *o = append(*o, fmt.Sprint(what, " ", err)) }

func TestReporterMerges(t *testing.T) {
	var told observer
	r := condition.NewReporter(&told)
	r.Report("reader", "disconnected", errReset)
	r.Report("keeper", "disconnected", errRefused)
	r.Report("reader", "", nil)
	r.Report("keeper", "no right", errRefused)
	r.Report("keeper", "", nil)
	r.Report("keeper", "", nil)
	want(t, told, "disconnected connection reset", "disconnected connection refused", "disconnected connection refused",
		"no right connection refused", "disconnected <nil>", "no right <nil>")
	condition.NewReporter(nil).Report("reader", "disconnected", errReset) // nobody wants to know
}
