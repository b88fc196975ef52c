package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	_ "github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/middleware/breaker"
	"github.com/millrace-go/millrace/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testlog.Strict(m)) }

var errDown = errors.New("database down")

// Open for 5 s, nothing is called and nothing is lost; one probe decides; no try is counted.
func TestRouterPausesWhileOpen(t *testing.T) {
	testlog.Expect(t, "handler failed", "not available; consuming pauses")
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		var text strings.Builder
		r := router.New(b, "g", router.Workers(1), router.Policy{Retry: make(router.Schedule, 6)}) // the three tries that open it, and three probes
		var up atomic.Bool
		var calls []time.Duration
		var handled []string
		start := time.Now()
		r.HandleFunc("in", func(_ context.Context, m *bus.Message) error {
			calls = append(calls, time.Since(start))
			if !up.Load() {
				return errDown
			}
			handled = append(handled, m.ID)
			return nil
		}, router.Use(breaker.New(breaker.Config{Name: "db", Failures: 3, Open: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(&text, nil))})))
		var want []string
		for i := range 20 {
			want = append(want, fmt.Sprintf("%02d", i))
			if err := b.PublishMessages(t.Context(), "in", &bus.Message{ID: want[i], Key: "k"}); err != nil {
				t.Fatal(err)
			}
		}
		bustest.Run(t, r)
		time.Sleep(18 * time.Second) // three probes find it down
		up.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !slices.Equal(handled, want) {
			t.Errorf("handled %v", handled)
		}
		// Three calls open it; the next three are the probes. If a refused call counted as a try,
		// the first message would have been poisoned.
		for i, at := range calls[:7] {
			least := []time.Duration{0, 0, 0, 5 * time.Second, 10 * time.Second, 15 * time.Second, 20 * time.Second}[i]
			if at < least || at > least+time.Second {
				t.Errorf("call %d at %v, want about %v", i+1, at, least)
			}
		}
		store, err := driver.Of(b).Poison(t.Context(), "g")
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range store.List(t.Context()) {
			t.Errorf("poisoned: %v, %v", e, err)
		}
		if !strings.Contains(text.String(), "to=open") || !strings.Contains(text.String(), "to=closed") || !strings.Contains(text.String(), "name=db") {
			t.Error(text.String())
		}
	})
}

// calls runs a handler that returns err so many times, and returns how often it was called.
func calls(t *testing.T, mw bus.Middleware, n int, h bus.HandlerFunc) (called int) {
	counted := mw(bus.HandlerFunc(func(ctx context.Context, m *bus.Message) error {
		called++
		return h(ctx, m)
	}))
	for range n {
		var err error
		ended := make(chan struct{})
		go func() { // a Goexit ends it
			defer close(ended)
			err = middleware.Recover()(counted).Handle(t.Context(), &bus.Message{})
		}()
		<-ended
		if d, ok := bus.UnavailableFor(err); errors.Is(err, breaker.ErrOpen) && (!ok || d <= 0 || d > 11*time.Second) {
			t.Errorf("%v for %v", err, d)
		}
	}
	return called
}

func TestWhatCountsAsFailure(t *testing.T) {
	testlog.Expect(t, "circuit breaker")
	for name, tc := range map[string]struct {
		h     bus.HandlerFunc
		trips bool
	}{
		"error":       {func(context.Context, *bus.Message) error { return errDown }, true},
		"panic":       {func(context.Context, *bus.Message) error { panic(1) }, true},
		"goexit":      {func(context.Context, *bus.Message) error { runtime.Goexit(); return nil }, true},
		"timeout":     {func(context.Context, *bus.Message) error { return context.DeadlineExceeded }, true},
		"permanent":   {func(context.Context, *bus.Message) error { return bus.Permanent(errDown) }, false},
		"ignored":     {func(context.Context, *bus.Message) error { return bus.Ignore(errDown) }, false},
		"unavailable": {func(context.Context, *bus.Message) error { return bus.Unavailable(errDown, 1) }, false},
		"success":     {func(context.Context, *bus.Message) error { return nil }, false},
	} {
		want := 20
		if tc.trips {
			want = breaker.DefaultFailures
		}
		if got := calls(t, breaker.New(breaker.Config{}), 20, tc.h); got != want {
			t.Errorf("%s: %d calls, want %d", name, got, want)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	mw := breaker.New(breaker.Config{Failures: 1})
	h := mw(bus.HandlerFunc(func(context.Context, *bus.Message) error { return errDown }))
	if err := h.Handle(cancelled, &bus.Message{}); errors.Is(h.Handle(t.Context(), &bus.Message{}), breaker.ErrOpen) || !errors.Is(err, errDown) {
		t.Error("a shutdown says nothing about the database")
	}
}

type batchFunc func(context.Context, []*bus.Message) error

func (f batchFunc) Handle(ctx context.Context, m *bus.Message) error {
	return f(ctx, []*bus.Message{m})
}

func (f batchFunc) HandleBatch(ctx context.Context, ms []*bus.Message) error { return f(ctx, ms) }

func TestBatches(t *testing.T) {
	testlog.Expect(t, "circuit breaker")
	two := []*bus.Message{{ID: "1"}, {ID: "2"}}
	for name, tc := range map[string]struct {
		err   error
		trips bool
	}{
		"all":              {errDown, true},
		"one":              {bus.PerMessage([]error{nil, errDown}), false},
		"one, one refused": {bus.PerMessage([]error{bus.Permanent(errDown), errDown}), true},
		"all refused":      {bus.PerMessage([]error{bus.Permanent(errDown), bus.Permanent(errDown)}), false},
	} {
		h := breaker.New(breaker.Config{Failures: 1})(batchFunc(func(context.Context, []*bus.Message) error { return tc.err })).(bus.BatchHandler)
		_ = h.HandleBatch(t.Context(), two)
		if err := h.HandleBatch(t.Context(), two); errors.Is(err, breaker.ErrOpen) != tc.trips {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A probe that says nothing, or that ends its goroutine, does not leave the breaker half open for
// ever.
func TestProbes(t *testing.T) {
	testlog.Expect(t, "circuit breaker")
	synctest.Test(t, func(t *testing.T) {
		mw := breaker.New(breaker.Config{Failures: 1, Open: time.Second})
		fail := func(context.Context, *bus.Message) error { return errDown }
		fine := func(context.Context, *bus.Message) error { return nil }
		calls(t, mw, 1, fail)
		h := mw(bus.HandlerFunc(fail))
		d, _ := bus.UnavailableFor(h.Handle(t.Context(), &bus.Message{}))
		time.Sleep(d)
		if err := h.Handle(t.Context(), &bus.Message{}); errors.Is(err, breaker.ErrOpen) {
			t.Errorf("still open after the %v that it asked for", d)
		}
		time.Sleep(2 * time.Second)
		if n := calls(t, mw, 2, func(context.Context, *bus.Message) error { return bus.Permanent(errDown) }); n != 2 {
			t.Errorf("%d calls, want the second to be a probe too", n)
		}
		calls(t, mw, 1, func(context.Context, *bus.Message) error { runtime.Goexit(); return nil })
		if n := calls(t, mw, 1, fine); n != 0 {
			t.Error("a probe that did not return has to open it")
		}
		time.Sleep(2 * time.Second)
		probing := make(chan struct{})
		go calls(t, mw, 1, func(context.Context, *bus.Message) error { <-probing; return nil })
		synctest.Wait()
		if n := calls(t, mw, 3, fine); n != 0 {
			t.Errorf("%d calls beside the probe", n)
		}
		close(probing)
		synctest.Wait()
		if n := calls(t, mw, 3, fine); n != 3 {
			t.Errorf("%d calls after a good probe, want 3", n)
		}
	})
}

func TestBadConfig(t *testing.T) {
	h := breaker.New(breaker.Config{Failures: -1})(batchFunc(nil))
	if err := h.(interface{ Check() error }).Check(); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "Failures is -1") {
		t.Error(err)
	}
}

// While the bank does not answer, no order is tried, and none is lost.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	b, err := bus.Open(ctx, "memory:", bus.WithLogger(nil))
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	bank := breaker.New(breaker.Config{Name: "bank", Failures: 2, Open: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	r := router.New(b, "billing", router.Workers(1), router.Policy{Retry: router.Schedule{0, 0, 0}})
	calls := 0
	r.HandleFunc("orders", func(_ context.Context, m *bus.Message) error {
		if calls++; calls <= 2 {
			return errors.New("no answer")
		}
		fmt.Println("charged for", m.ID, "in call", calls)
		stop()
		return nil
	}, router.Use(bank)) // the same value for all handlers that need the bank
	if err := b.PublishMessages(ctx, "orders", &bus.Message{ID: "o1"}); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: charged for o1 in call 3
}
