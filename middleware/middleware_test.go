package middleware_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/router"
)

// call runs mw around a handler of single messages, as a router does for m.
func call(ctx context.Context, mw bus.Middleware, m *bus.Message, h bus.HandlerFunc) error {
	ctx = engine.New(ctx, nil, bus.Delivery{Message: m, Topic: "t", Group: "g", Handler: "g/t", Attempt: 2})
	return mw(h).Handle(ctx, m)
}

// batch is a handler of batches that keeps its messages.
type batch struct {
	bus.HandlerFunc
	got []string
	err error
}

func (b *batch) HandleBatch(_ context.Context, ms []*bus.Message) error {
	for _, m := range ms {
		b.got = append(b.got, m.ID)
	}
	return b.err
}

func TestLoggingTellsWhatHappenedAndNoSecrets(t *testing.T) {
	var log strings.Builder
	mw := middleware.Logging(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	m := &bus.Message{ID: "m1", Type: "order", Key: "secret", Payload: []byte("secret")}
	if err := call(t.Context(), mw, m, func(context.Context, *bus.Message) error { return nil }); err != nil {
		t.Error(err)
	}
	boom := errors.New("boom")
	if err := call(t.Context(), mw, m, func(context.Context, *bus.Message) error { return boom }); !errors.Is(err, boom) {
		t.Error(err)
	}
	for _, want := range []string{"level=DEBUG", "level=WARN", "handler=g/t", "id=m1", "type=order", "attempt=2", "err=boom"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
	if strings.Contains(log.String(), "secret") {
		t.Error(log.String())
	}
}

func TestCorrelationGoesOverHops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := memory.Open(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		r := router.New(b, "g", router.Use(middleware.Correlation()))
		r.HandleFunc("one", func(ctx context.Context, m *bus.Message) error {
			return bus.Emit(ctx, "two", &bus.Message{ID: "second"})
		})
		r.HandleFunc("two", func(ctx context.Context, m *bus.Message) error {
			return b.Publish(ctx, "three", &bus.Message{ID: "third", Headers: bus.Headers{{Name: "tracestate", Value: "own"}}})
		})
		var last *bus.Message
		r.HandleFunc("three", func(_ context.Context, m *bus.Message) error { last = m; return nil })
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error)
		go func() { over <- r.Run(ctx) }()
		first := &bus.Message{ID: "first", Headers: bus.Headers{{Name: "traceparent", Value: "00-1"}, {Name: "tracestate", Value: "s"}}}
		if err := b.PublishMessages(ctx, "one", first); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		cancel()
		if err := errors.Join(<-over, b.Close()); err != nil {
			t.Error(err)
		}
		want := bus.Headers{{Name: "tracestate", Value: "own"}, {Name: "correlationid", Value: "first"}, {Name: "causationid", Value: "second"}, {Name: "traceparent", Value: "00-1"}}
		if last == nil || !slices.Equal(last.Headers, want) {
			t.Errorf("third hop: %v", last.Headers)
		}
	})
}

func TestFilterAndValidate(t *testing.T) {
	odd := errors.New("odd")
	for name, mw := range map[string]bus.Middleware{
		"filter": middleware.Filter(func(m *bus.Message) bool { return m.ID != "2" }),
		"validate": middleware.Validate(func(_ context.Context, m *bus.Message) error {
			if m.ID == "2" {
				return odd
			}
			return nil
		}),
	} {
		for _, id := range []string{"1", "2"} {
			handled := false
			err := call(t.Context(), mw, &bus.Message{ID: id}, func(context.Context, *bus.Message) error { handled = true; return nil })
			if handled != (id == "1") {
				t.Errorf("%s: message %s handled: %v", name, id, handled)
			}
			if refused := name == "validate" && id == "2"; refused != bus.IsPermanent(err) || !refused && err != nil {
				t.Errorf("%s: message %s: %v", name, id, err)
			}
		}
		last := errors.New("the last")
		b := &batch{err: bus.PerMessage([]error{nil, last})}
		err := mw(b).(bus.BatchHandler).HandleBatch(t.Context(), []*bus.Message{{ID: "1"}, {ID: "2"}, {ID: "3"}})
		errs := bus.Outcomes(err, 3)
		if !slices.Equal(b.got, []string{"1", "3"}) || errs[0] != nil || (name == "validate") != errors.Is(errs[1], odd) || !errors.Is(errs[2], last) {
			t.Errorf("%s: batch got %v, outcomes %v", name, b.got, errs)
		}
	}
	later := bus.RetryAfter(odd, time.Minute)
	mw := middleware.Validate(func(context.Context, *bus.Message) error { return later })
	if err := call(t.Context(), mw, &bus.Message{}, nil); bus.IsPermanent(err) {
		t.Error("an error that is marked keeps its mark")
	}
}

func TestThrottleKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mw := middleware.Throttle(10, 5)
		start := time.Now()
		var at []time.Duration
		for range 25 {
			if err := call(t.Context(), mw, &bus.Message{}, func(context.Context, *bus.Message) error {
				at = append(at, time.Since(start))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if at[4] != 0 || at[5] != 100*time.Millisecond || at[24] != 2*time.Second {
			t.Errorf("calls at %v", at)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := call(ctx, mw, &bus.Message{}, nil); !errors.Is(err, context.DeadlineExceeded) || bus.IsPermanent(err) {
			t.Errorf("a wait that is cut short: %v", err)
		}
		if err := call(t.Context(), middleware.Throttle(0, 1), &bus.Message{}, nil); func() bool { _, away := bus.UnavailableFor(err); return !away }() || !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("a rate of 0: %v", err)
		}
	})
}

func TestConcurrencyLimitIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mw := middleware.ConcurrencyLimit(2)
		var mu sync.Mutex
		now, most := 0, 0
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := call(t.Context(), mw, &bus.Message{}, func(context.Context, *bus.Message) error {
					mu.Lock()
					now++
					most = max(most, now)
					mu.Unlock()
					time.Sleep(time.Second)
					mu.Lock()
					now--
					mu.Unlock()
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if most != 2 {
			t.Errorf("%d at once", most)
		}
	})
}
