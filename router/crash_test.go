package router_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// brokenError is an error of which a nil pointer cannot be asked.
type brokenError struct{ text string }

func (e *brokenError) Error() string { return e.text }

// panicking is a hook that panics.
type panicking struct{}

func (panicking) Handled(context.Context, router.Handled)      { panic("hook") }
func (panicking) Poisoned(context.Context, driver.PoisonEntry) { panic("hook") }

// TestWhatPanicsIsAnError: code of the user's around a handler ends no process, and no worker.
func TestWhatPanicsIsAnError(t *testing.T) {
	never := router.Policy{Retry: router.Never}
	panics := func(error) bool { panic("match") }
	tests := map[string]struct {
		handler bus.Handler
		opts    []router.Option
		hooks   bool
		class   string
	}{
		"a nil error in a batch": {handler: batchFunc(func(_ context.Context, ms []*bus.Message) error {
			errs := make([]error, len(ms))
			var none *brokenError
			errs[0] = none
			return bus.PerMessage(errs)
		}), class: "panic"},
		"Policy.Permanent": {handler: failing(nil), opts: []router.Option{router.Policy{Retry: router.Never, Permanent: panics}}, class: "panic"},
		"Policy.Ignore":    {handler: failing(nil), opts: []router.Option{router.Policy{Retry: router.Never, Ignore: panics}}, class: "retries exhausted"},
		"Goexit in OnSuccess": {handler: failing(func(ctx context.Context) error {
			return bus.OnSuccess(ctx, func(context.Context) error { runtime.Goexit(); return nil })
		}), class: "panic"},
		"hooks": {handler: failing(nil), hooks: true, class: "retries exhausted"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := openBus(t)
				opts := []router.RootOption{never, router.Workers(1)}
				if test.hooks {
					opts = append(opts, router.Hooks(panicking{}))
				}
				r := router.New(b, "g", opts...)
				r.Handle("t", test.handler, test.opts...)
				run(t, r, aPoisoning, "a hook panicked")
				publish(t, b, "t", &bus.Message{ID: "1"})
				time.Sleep(time.Second)
				synctest.Wait()
				publish(t, b, "t", &bus.Message{ID: "2"}) // the worker goes on
				time.Sleep(time.Second)
				synctest.Wait()
				es := poisoned(t, b, "g")
				if len(es) != 2 || es[0].Failure.Class != test.class {
					t.Errorf("poisoned are %+v", es)
				}
			})
		})
	}
}

// failing is a handler that fails, or returns what f does.
func failing(f func(context.Context) error) bus.Handler {
	return bus.HandlerFunc(func(ctx context.Context, _ *bus.Message) error {
		if f == nil {
			return errors.New("failed")
		}
		return f(ctx)
	})
}

func TestNilBus(t *testing.T) {
	r := router.New(nil, "g")
	r.HandleFunc("t", nop)
	if err := r.Check(); err == nil || !strings.Contains(err.Error(), "the bus is nil") {
		t.Errorf("check: %v", err)
	}
}
