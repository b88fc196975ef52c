package router_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/router"
)

// lines is a log's handler that keeps WARN and ERROR records, each with its time since the start,
// its class and the number of failures that were left out.
type lines struct {
	start time.Time

	mu  sync.Mutex
	all []string
}

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return nil
	}
	class, more := "", int64(0)
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "class":
			class = a.Value.String()
		case "more":
			more = a.Value.Int64()
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, fmt.Sprintf("%v %s: %s, %d more", time.Since(l.start).Truncate(time.Second), r.Message, class, more))
	return nil
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lines) WithGroup(string) slog.Handler            { return l }

// TestFailuresDoNotFloodTheLog: the log tells of the first failure of each class at once, and of
// the rest once a second, with their number. Nothing is left out for ever.
func TestFailuresDoNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		log := &lines{start: time.Now()}
		r := router.New(b, "g", router.Logger(slog.New(log)), router.Workers(1), router.Policy{Retry: router.Schedule{}})
		r.HandleFunc("in", func(_ context.Context, m *bus.Message) error {
			if m.Type == "panics" {
				panic("boom")
			}
			return bus.Permanent(errors.New("refused"))
		})
		run(t, r)
		for range 50 {
			publish(t, b, "in", &bus.Message{}, &bus.Message{})
		}
		publish(t, b, "in", &bus.Message{Type: "panics"})
		time.Sleep(10 * time.Second) // in virtual time
		publish(t, b, "in", &bus.Message{})
		synctest.Wait()
		log.mu.Lock()
		defer log.mu.Unlock()
		want := []string{
			"0s message poisoned: permanent, 0 more",
			"0s message poisoned: panic, 0 more",
			"1s message poisoned: permanent, 98 more",
			"10s message poisoned: permanent, 0 more",
		}
		if !slices.Equal(log.all, want) {
			t.Errorf("the log has\n%q, want\n%q", log.all, want)
		}
	})
}
