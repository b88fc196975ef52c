package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/router"
)

// poisonedIn returns the entries of a poison queue.
func poisonedIn(t *testing.T, b *bus.Bus, name string) (entries []driver.PoisonEntry) {
	t.Helper()
	store, err := driver.Of(b).Poison(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range store.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries
}

// A message that a handler wants again is neither poisoned nor ignored by middleware outside,
// whatever that matches. Package breaker tests the same of the calls that an open breaker refuses.
func TestNothingGivesUpWhatIsToComeAgain(t *testing.T) {
	all := func(error) bool { return true }
	for _, name := range []string{"poison", "ignore"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := bustest.New(t)
				store, err := driver.Of(b).Poison(t.Context(), "review")
				if err != nil {
					t.Fatal(err)
				}
				outer := middleware.Poison(store, all)
				if name == "ignore" {
					outer = middleware.Ignore(all)
				}
				later := bus.RetryAfter(errBoom, time.Minute)
				for _, batches := range []bool{false, true} {
					var got error
					if m := (&bus.Message{ID: "1"}); batches {
						got = endedBatch(t.Context(), b, outer, batchFunc(func(context.Context, []*bus.Message) error { return later }), m)[0]
					} else {
						got = ended(t.Context(), b, outer, m, func(context.Context, *bus.Message) error { return later })
					}
					if d, ok := bus.RetryDelay(got); !ok || d != time.Minute {
						t.Errorf("batches %v: RetryAfter became %v", batches, got)
					}
				}
			})
		})
	}
}

// A time-out around a wait poisons nothing that the handler has not been given, and all of it is
// handled in the end.
func TestWaitsThatAreCutShortAreNoTries(t *testing.T) {
	testlog.Expect(t, "not available; consuming pauses")
	for name, mw := range map[string]func() bus.Middleware{
		"Throttle":         func() bus.Middleware { return middleware.Throttle(1, 1) },
		"ConcurrencyLimit": func() bus.Middleware { return middleware.ConcurrencyLimit(1) },
		"Retry, Throttle": func() bus.Middleware {
			retry, throttle := middleware.Retry([]time.Duration{0, 0}), middleware.Throttle(1, 1)
			return func(next bus.Handler) bus.Handler { return retry(throttle(next)) }
		},
		"Deduplicate": func() bus.Middleware {
			return middleware.Deduplicate(&middleware.DedupMemory{}, func(m *bus.Message) string { return "one" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := bustest.New(t)
				r := router.New(b, "g", router.Workers(20), router.Timeout(3*time.Second), router.Policy{Retry: router.Never})
				var mu sync.Mutex
				handled := map[string]int{}
				r.HandleFunc("in", func(_ context.Context, m *bus.Message) error {
					time.Sleep(time.Second)
					mu.Lock()
					defer mu.Unlock()
					handled[m.ID]++
					if name == "Deduplicate" && len(handled) < 20 {
						time.Sleep(5 * time.Second)
						return bus.Ignore(errBoom) // is not remembered, so that the next has its turn
					}
					return nil
				}, router.Use(mw()))
				bustest.Run(t, r)
				start := time.Now()
				for i := range 50 {
					if err := b.PublishMessages(t.Context(), "in", &bus.Message{ID: fmt.Sprint(i), Key: fmt.Sprint(i)}); err != nil {
						t.Fatal(err)
					}
				}
				for r.Health().Routes[0].Handled < 50 && time.Since(start) < time.Hour {
					time.Sleep(time.Second)
				}
				synctest.Wait()
				if es := poisonedIn(t, b, "g"); len(es) > 0 {
					t.Errorf("%d healthy messages were poisoned: %s", len(es), es[0].Failure.Text)
				}
				if n := r.Health().Routes[0].Handled; n != 50 {
					t.Errorf("%d settled, want 50", n)
				}
				if name != "Deduplicate" && (len(handled) != 50 || slices.Max(slices.Collect(maps.Values(handled))) > 1) {
					t.Errorf("handled %v", handled)
				}
				if took := time.Since(start); strings.HasSuffix(name, "Throttle") && took > 60*time.Second {
					t.Errorf("it took %v at one a second", took)
				}
			})
		})
	}
}

// The failure of a try counts, although the next one is not let through: or a message that always
// fails would be tried for ever.
func TestRetryTellsOfTheTryThatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, batches := range []bool{false, true} {
			retry, throttle := middleware.Retry([]time.Duration{0, 0, 0}), middleware.Throttle(0.1, 1)
			h := &batch{err: errBoom}
			var err error
			if chain := retry(throttle(h)); batches {
				err = bus.Outcomes(chain.(bus.BatchHandler).HandleBatch(ctx, []*bus.Message{{ID: "1"}}), 1)[0]
			} else {
				calls := 0
				err = call(ctx, func(next bus.Handler) bus.Handler { return retry(throttle(next)) }, &bus.Message{}, func(context.Context, *bus.Message) error {
					calls++
					return errBoom
				})
				if calls != 1 {
					t.Errorf("%d calls", calls)
				}
			}
			if _, away := bus.UnavailableFor(err); away || !errors.Is(err, errBoom) || !strings.Contains(err.Error(), "throttled") {
				t.Errorf("batches %v: %v", batches, err)
			}
		}
	})
}

func TestThrottleDoesNotWaitForWhatComesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mw := middleware.Throttle(1, 1)
		fine := func(context.Context, *bus.Message) error { return nil }
		if err := call(t.Context(), mw, &bus.Message{}, fine); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		err := call(short, mw, &bus.Message{}, nil)
		if d, away := bus.UnavailableFor(err); !away || d != time.Second || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "middleware.Timeout") || time.Since(start) != 0 {
			t.Errorf("%v after %v, to come again in %v", err, time.Since(start), d)
		}
		stopped, stop := context.WithCancelCause(t.Context())
		time.AfterFunc(300*time.Millisecond, func() { stop(errBoom) })
		err = call(stopped, mw, &bus.Message{}, nil)
		if d, away := bus.UnavailableFor(err); !away || d != 700*time.Millisecond || !errors.Is(err, errBoom) {
			t.Errorf("%v, to come again in %v", err, d)
		}
		if err := call(t.Context(), mw, &bus.Message{}, fine); err != nil || time.Since(start) != time.Second {
			t.Errorf("%v after %v: both have given their turn back", err, time.Since(start))
		}
	})
}

func TestConcurrencyLimitGivesPlacesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mw := middleware.ConcurrencyLimit(1)
		inside := func(next bus.Handler) bus.Handler { return survivor{middleware.Recover()(mw(next))} }
		for name, h := range map[string]bus.HandlerFunc{
			"error":  func(context.Context, *bus.Message) error { return errBoom },
			"panic":  func(context.Context, *bus.Message) error { panic("!") },
			"goexit": func(context.Context, *bus.Message) error { runtime.Goexit(); return nil },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := call(ctx, inside, &bus.Message{}, h); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v: the place of the call before was not given back", name, err)
			}
			cancel()
		}
		go func() {
			_ = call(t.Context(), mw, &bus.Message{}, func(context.Context, *bus.Message) error { time.Sleep(time.Minute); return nil })
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		err := call(ctx, mw, &bus.Message{}, nil)
		if d, away := bus.UnavailableFor(err); !away || d <= 0 || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "all 1 places") || time.Since(start) != time.Second {
			t.Errorf("%v after %v, to come again in %v", err, time.Since(start), d)
		}
		time.Sleep(time.Minute)
		if err := call(t.Context(), mw, &bus.Message{}, func(context.Context, *bus.Message) error { return nil }); err != nil {
			t.Errorf("the one that did not wait to the end has a place: %v", err)
		}
	})
}

// A check that was cut short says nothing about the message.
func TestValidateThatIsCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bounded, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for name, check := range map[string]func(context.Context, *bus.Message) error{
			"the call's deadline, in other words": func(ctx context.Context, _ *bus.Message) error {
				<-ctx.Done()
				return errors.New("registry: i/o timeout")
			},
			"its own deadline": func(context.Context, *bus.Message) error { return fmt.Errorf("ask: %w", context.DeadlineExceeded) },
			"a cancellation":   func(context.Context, *bus.Message) error { return fmt.Errorf("ask: %w", context.Canceled) },
		} {
			ctx := t.Context()
			if strings.HasPrefix(name, "the call's") {
				ctx = bounded
			}
			if err := call(ctx, middleware.Validate(check), &bus.Message{}, nil); err == nil || bus.IsPermanent(err) {
				t.Errorf("%s: %v, want an error that is not permanent", name, err)
			}
		}
	})
}

func TestRetryAddsATenthAtRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waited := map[time.Duration]bool{}
		for range 50 {
			start := time.Now()
			_ = call(t.Context(), middleware.Retry([]time.Duration{time.Second}), &bus.Message{}, func(context.Context, *bus.Message) error { return errBoom })
			d := time.Since(start)
			if waited[d] = true; d < time.Second || d >= 1100*time.Millisecond {
				t.Errorf("waited %v", d)
			}
		}
		if len(waited) < 40 {
			t.Errorf("%d different delays of 50", len(waited))
		}
	})
}

// A batch of any size passes nothing on: code that works with one message works with two.
func TestCorrelationOfABatch(t *testing.T) {
	b := bustest.New(t)
	for n := 1; n <= 2; n++ {
		var ms []*bus.Message
		for i := range n {
			ms = append(ms, &bus.Message{ID: fmt.Sprint(i)})
		}
		out := &bus.Message{ID: "out"}
		errs := endedBatch(t.Context(), b, middleware.Correlation(), batchFunc(func(ctx context.Context, _ []*bus.Message) error {
			return b.PublishMessages(ctx, "out", out)
		}), ms...)
		if err := bus.PerMessage(errs); err != nil {
			t.Fatal(err)
		}
		if got := out.Headers.Get(bus.HeaderCausationID); got != "" {
			t.Errorf("a batch of %d: caused by %q, want nothing", n, got)
		}
	}
}
