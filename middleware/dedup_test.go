package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/router"
)

// ended runs mw around a handler of single messages, and ends the call as a router does.
func ended(ctx context.Context, b *bus.Bus, mw bus.Middleware, m *bus.Message, h bus.HandlerFunc) error {
	ctx2 := engine.New(ctx, b, bus.Delivery{Message: m, Topic: "t", Group: "g", Handler: "g/t", Attempt: 1})
	err := mw(h).Handle(ctx2, m)
	if err != nil && !bus.IsIgnored(err) {
		engine.Discard(ctx2)
		return err
	}
	return errors.Join(err, engine.Flush(ctx, ctx2, nil))
}

// endedBatch is ended for a batch; it returns an outcome for each message.
func endedBatch(ctx context.Context, b *bus.Bus, mw bus.Middleware, h bus.BatchHandler, ms ...*bus.Message) []error {
	ctx2 := engine.NewBatch(ctx, b, bus.Delivery{Topic: "t", Group: "g", Handler: "g/t", Attempt: 1}, ms)
	errs := bus.Outcomes(mw(h).(bus.BatchHandler).HandleBatch(ctx2, ms), len(ms))
	failed := map[string]bool{}
	for i, err := range errs {
		failed[ms[i].ID] = err != nil && !bus.IsIgnored(err)
	}
	if err := engine.Flush(ctx, ctx2, func(id string) bool { return failed[id] }); err != nil {
		for i := range errs {
			errs[i] = errors.Join(errs[i], err)
		}
	}
	return errs
}

// failingStore fails when the test says so.
type failingStore struct {
	middleware.DedupMemory
	seen, remember error
}

func (s *failingStore) Seen(ctx context.Context, group string, ids []string) ([]bool, error) {
	if s.seen != nil {
		return nil, s.seen
	}
	return s.DedupMemory.Seen(ctx, group, ids)
}

func (s *failingStore) Remember(ctx context.Context, group string, ids []string) error {
	if s.remember != nil {
		return s.remember
	}
	return s.DedupMemory.Remember(ctx, group, ids)
}

// survivor makes an error of a Goexit, as a router does.
type survivor struct{ next bus.Handler }

func (s survivor) Handle(ctx context.Context, m *bus.Message) error {
	err := router.ErrGoexit
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = s.next.Handle(ctx, m)
	}()
	<-ended
	return err
}

func TestDeduplicateRemembersOnlySuccess(t *testing.T) {
	b := bustest.New(t)
	boom := errors.New("boom")
	for name, fail := range map[string]func(ctx context.Context, s *failingStore) error{
		"error":   func(context.Context, *failingStore) error { return boom },
		"ignored": func(context.Context, *failingStore) error { return bus.Ignore(boom) },
		"panic":   func(context.Context, *failingStore) error { panic(boom) },
		"goexit":  func(context.Context, *failingStore) error { runtime.Goexit(); return nil },
		"outputs are not published": func(ctx context.Context, _ *failingStore) error {
			return bus.Emit(ctx, "out", bus.Message{ID: "a\nb"})
		},
		"store fails afterwards": func(_ context.Context, s *failingStore) error { s.remember = boom; return nil },
	} {
		t.Run(name, func(t *testing.T) {
			store := &failingStore{}
			mw := middleware.Deduplicate(store, nil)
			inside := func(next bus.Handler) bus.Handler { return survivor{middleware.Recover()(mw(next))} }
			calls := 0
			handle := func() error {
				return ended(t.Context(), b, inside, &bus.Message{ID: "1"}, func(ctx context.Context, _ *bus.Message) error {
					if calls++; calls == 1 {
						return fail(ctx, store)
					}
					return nil
				})
			}
			if err := handle(); err == nil {
				t.Error("the first try succeeded")
			}
			store.remember = nil
			for range 3 {
				if err := handle(); err != nil {
					t.Error(err)
				}
			}
			if calls != 2 {
				t.Errorf("%d calls, want 2", calls)
			}
		})
	}
	store := &failingStore{seen: boom}
	mw := middleware.Deduplicate(store, nil)
	if err := ended(t.Context(), b, mw, &bus.Message{ID: "1"}, nil); !errors.Is(err, boom) {
		t.Errorf("a store that cannot be asked: %v", err)
	}
	store.seen = nil
	if err := ended(t.Context(), b, mw, &bus.Message{ID: "1"}, func(context.Context, *bus.Message) error { return nil }); err != nil {
		t.Errorf("after that: %v", err)
	}
	if err := mw(bus.HandlerFunc(nil)).Handle(t.Context(), &bus.Message{ID: "1"}); err == nil {
		t.Error("outside of a handler it cannot know the group")
	}
}

func TestDeduplicateByKeyAndGroup(t *testing.T) {
	b := bustest.New(t)
	mw := middleware.Deduplicate(&middleware.DedupMemory{}, func(m *bus.Message) string { return m.Subject })
	var got []string
	h := mw(bus.HandlerFunc(func(ctx context.Context, m *bus.Message) error {
		got = append(got, bus.DeliveryFrom(ctx).Group+m.ID)
		return nil
	}))
	for i, tc := range []struct{ group, subject string }{{"a", "x"}, {"a", "x"}, {"b", "x"}, {"a", "y"}, {"a", ""}, {"a", ""}} {
		m := &bus.Message{ID: strconv.Itoa(i), Subject: tc.subject}
		ctx := engine.New(t.Context(), b, bus.Delivery{Message: m, Group: tc.group})
		if err := errors.Join(h.Handle(ctx, m), engine.Flush(ctx, ctx, nil)); err != nil {
			t.Error(err)
		}
	}
	if want := []string{"a0", "b2", "a3", "a4", "a5"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Repeats that come while the first message is handled wait for it; after a failure the next is
// handled.
func TestDeduplicateInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		mw := middleware.Deduplicate(&middleware.DedupMemory{}, nil)
		results := make(chan error)
		calls := make(chan struct{}, 10)
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				_ = ended(t.Context(), b, mw, &bus.Message{ID: "1"}, func(context.Context, *bus.Message) error {
					calls <- struct{}{}
					return <-results
				})
			})
		}
		synctest.Wait()
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := ended(impatient, b, mw, &bus.Message{ID: "1"}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a wait that is cut short: %v", err)
		}
		if len(calls) != 1 {
			t.Errorf("%d at once", len(calls))
		}
		results <- errors.New("boom")
		synctest.Wait()
		if len(calls) != 2 {
			t.Errorf("%d calls after a failure, want 2", len(calls))
		}
		results <- nil
		wg.Wait()
		if len(calls) != 2 {
			t.Errorf("%d calls after a success, want 2", len(calls))
		}
	})
}

func TestDeduplicateBatches(t *testing.T) {
	b := bustest.New(t)
	mw := middleware.Deduplicate(&middleware.DedupMemory{}, nil)
	boom := errors.New("boom")
	h := &batch{err: bus.PerMessage([]error{nil, boom, nil})}
	errs := endedBatch(t.Context(), b, mw, h, &bus.Message{ID: "1"}, &bus.Message{ID: "2"}, &bus.Message{ID: "2"}, &bus.Message{ID: "3"})
	if !slices.Equal(h.got, []string{"1", "2", "3"}) || errs[0] != nil || !errors.Is(errs[1], boom) || !errors.Is(errs[2], boom) || errs[3] != nil {
		t.Errorf("handled %v, outcomes %v", h.got, errs)
	}
	h = &batch{}
	errs = endedBatch(t.Context(), b, mw, h, &bus.Message{ID: "3"}, &bus.Message{ID: "2"}, &bus.Message{ID: "1"}, &bus.Message{ID: "4"})
	if !slices.Equal(h.got, []string{"2", "4"}) || bus.PerMessage(errs) != nil {
		t.Errorf("handled %v, outcomes %v", h.got, errs)
	}
	// Middleware outside fails a message after its handler has succeeded: it is not remembered.
	refuse := bus.Around(func(ctx context.Context, c bus.Call) error {
		return bus.PerMessage(append(bus.Outcomes(c.Next(ctx), c.Len())[:1], boom))
	})
	outside := func(next bus.Handler) bus.Handler { return refuse(mw(next)) }
	endedBatch(t.Context(), b, outside, h, &bus.Message{ID: "5"}, &bus.Message{ID: "6"})
	h = &batch{}
	endedBatch(t.Context(), b, mw, h, &bus.Message{ID: "5"}, &bus.Message{ID: "6"})
	if !slices.Equal(h.got, []string{"6"}) {
		t.Errorf("handled %v, want 6", h.got)
	}
}

// Two batches that share ids in opposite order do not wait for each other for ever.
func TestDeduplicateBatchesDoNotLock(t *testing.T) {
	b := bustest.New(t)
	mw := middleware.Deduplicate(&middleware.DedupMemory{}, nil)
	var mu sync.Mutex
	handled := map[string]int{}
	h := batchFunc(func(_ context.Context, ms []*bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range ms {
			handled[m.ID]++
		}
		return nil
	})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				ms := []*bus.Message{{ID: fmt.Sprint("a", i)}, {ID: fmt.Sprint("b", i)}, {ID: fmt.Sprint("c", i)}}
				if w%2 == 0 {
					slices.Reverse(ms)
				}
				if err := bus.PerMessage(endedBatch(t.Context(), b, mw, h, ms...)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for id, n := range handled {
		if n != 1 {
			t.Errorf("%s was handled %d times", id, n)
		}
	}
	if len(handled) != 600 {
		t.Errorf("%d ids", len(handled))
	}
}

type batchFunc func(context.Context, []*bus.Message) error

func (f batchFunc) Handle(ctx context.Context, m *bus.Message) error {
	return f(ctx, []*bus.Message{m})
}

func (f batchFunc) HandleBatch(ctx context.Context, ms []*bus.Message) error { return f(ctx, ms) }

// In any order with Retry, a failure is tried again and a success remembered; also when something
// between the two fails a message after its handler.
func TestDeduplicateAndRetryInAnyOrder(t *testing.T) {
	boom := errors.New("boom")
	retry := middleware.Retry([]time.Duration{0, 0, 0})
	for name, chain := range map[string]func(dedup, flaky bus.Middleware) []bus.Middleware{
		"outside": func(d, f bus.Middleware) []bus.Middleware { return []bus.Middleware{d, retry, f} },
		"inside":  func(d, f bus.Middleware) []bus.Middleware { return []bus.Middleware{retry, d, f} },
		"between": func(d, f bus.Middleware) []bus.Middleware { return []bus.Middleware{retry, f, d} },
	} {
		for _, after := range []bool{false, true} {
			for _, batches := range []bool{false, true} {
				t.Run(fmt.Sprint(name, " after=", after, " batches=", batches), func(t *testing.T) {
					b := bustest.New(t)
					fails := 2
					flaky := bus.Around(func(ctx context.Context, c bus.Call) error {
						if fails--; fails < 0 {
							return c.Next(ctx)
						}
						if after {
							if err := c.Next(ctx); err != nil {
								return err
							}
						}
						return boom
					})
					mws := chain(middleware.Deduplicate(&middleware.DedupMemory{}, nil), flaky)
					all := func(h bus.Handler) bus.Handler {
						for _, mw := range slices.Backward(mws) {
							h = mw(h)
						}
						return h
					}
					emit := func(ctx context.Context, m *bus.Message) error {
						return bus.Emit(ctx, "out", m.ID, bus.WithCause(m))
					}
					for range 2 {
						var err error
						if batches {
							err = bus.PerMessage(endedBatch(t.Context(), b, all, batchFunc(func(ctx context.Context, ms []*bus.Message) error {
								return emit(ctx, ms[0])
							}), &bus.Message{ID: "1"}))
						} else {
							err = ended(t.Context(), b, all, &bus.Message{ID: "1"}, emit)
						}
						if err != nil {
							t.Error(err)
						}
					}
					if got := bustest.Published[string](t, b, "out"); !slices.Equal(got, []string{"1"}) {
						t.Errorf("published %v, want it once", got)
					}
				})
			}
		}
	}
}

// With a router: repeats published while the first is handled and later, a handler that fails
// first, outputs once.
func TestDeduplicateUnderARouter(t *testing.T) {
	testlog.Expect(t, "handler failed")
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		chaos := middleware.Chaos(middleware.ChaosConfig{Seed: 1, Fail: 0.3, Panic: 0.1, Duplicate: 0.3, Delay: 0.5, MaxDelay: time.Second})
		r := router.New(b, "g", router.Policy{Retry: router.Exponential(time.Second, time.Minute, 100)},
			router.Use(chaos, middleware.Deduplicate(&middleware.DedupMemory{}, nil)))
		tries := map[string]int{}
		var mu sync.Mutex
		r.HandleFunc("in", func(ctx context.Context, m *bus.Message) error {
			mu.Lock()
			tries[m.ID]++
			first := tries[m.ID] == 1
			mu.Unlock()
			if err := bus.Emit(ctx, "out", m.ID); err != nil {
				return err
			}
			time.Sleep(time.Second)
			if first {
				return errors.New("first try")
			}
			return nil
		})
		bustest.Run(t, r)
		for round := range 5 {
			for i := range 50 {
				if err := b.PublishMessages(t.Context(), "in", &bus.Message{ID: strconv.Itoa(i)}); err != nil {
					t.Fatal(err)
				}
			}
			if round%2 == 1 {
				time.Sleep(2 * time.Second)
			}
		}
		time.Sleep(24 * time.Hour) // all retries
		synctest.Wait()
		got := bustest.Published[string](t, b, "out")
		slices.Sort(got)
		if all := len(got); len(slices.Compact(got)) != 50 || all != 50 {
			t.Errorf("%d outputs of %d messages, want 50", all, len(slices.Compact(got)))
		}
	})
}

func TestDedupMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s := &middleware.DedupMemory{TTL: time.Minute, Entries: 3}
		seen := func(ids ...string) []bool {
			t.Helper()
			seen, err := s.Seen(ctx, "g", ids)
			if err != nil {
				t.Fatal(err)
			}
			return seen
		}
		remember := func(ids ...string) {
			if err := s.Remember(ctx, "g", ids); err != nil {
				t.Fatal(err)
			}
		}
		remember("1", "2")
		time.Sleep(30 * time.Second)
		remember("3", "1")
		if got := seen("1", "2", "3", "4"); !slices.Equal(got, []bool{true, true, true, false}) {
			t.Errorf("%v", got)
		}
		if got, err := s.Seen(ctx, "other", []string{"1"}); err != nil || got[0] {
			t.Errorf("another group: %v, %v", got, err)
		}
		time.Sleep(30 * time.Second)
		if got := seen("1", "2", "3"); !slices.Equal(got, []bool{true, false, true}) {
			t.Errorf("after the time of 2: %v", got)
		}
		remember("4", "5")
		if got := seen("1", "3", "4", "5"); !slices.Equal(got, []bool{true, false, true, true}) {
			t.Errorf("beyond the bound: %v", got)
		}
	})
}
