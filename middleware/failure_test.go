package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/router"
)

var errBoom = errors.New("boom")

func TestRecover(t *testing.T) {
	for name, tc := range map[string]struct {
		h      bus.HandlerFunc
		is     error
		panics any
	}{
		"panic": {func(context.Context, *bus.Message) error { panic("at the disco") }, nil, "at the disco"},
		"error": {func(context.Context, *bus.Message) error { return errBoom }, errBoom, nil},
		"fine":  {func(context.Context, *bus.Message) error { return nil }, nil, nil},
	} {
		err := call(t.Context(), middleware.Recover(), &bus.Message{}, tc.h)
		p, ok := errors.AsType[*router.PanicError](err)
		if ok != (tc.panics != nil) || ok && (p.Value != tc.panics || !strings.Contains(p.Stack, "TestRecover")) || tc.is != nil && !errors.Is(err, tc.is) || name == "fine" && err != nil {
			t.Errorf("%s: %v, %+v", name, err, p)
		}
	}
	err := middleware.Recover()(batchFunc(func(context.Context, []*bus.Message) error { panic(1) })).(bus.BatchHandler).HandleBatch(t.Context(), nil)
	if _, ok := errors.AsType[*router.PanicError](err); !ok {
		t.Errorf("batch: %v", err)
	}
}

// Each try has a context of its own; Retry's own does not end with it.
func TestTimeoutInsideOfRetryIsFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		retry, timeout := middleware.Retry([]time.Duration{time.Second, time.Second}), middleware.Timeout(time.Minute)
		tries := 0
		slow := func(ctx context.Context, _ *bus.Message) error {
			if err := ctx.Err(); err != nil {
				t.Errorf("try %d begins with %v", tries, err)
			}
			if tries++; tries == 3 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		inside := func(next bus.Handler) bus.Handler { return retry(timeout(next)) }
		if err := call(t.Context(), inside, &bus.Message{}, slow); err != nil || tries != 3 {
			t.Errorf("%v after %d tries", err, tries)
		}
		tries = 0
		outside := func(next bus.Handler) bus.Handler { return timeout(retry(next)) }
		start := time.Now()
		if err := call(t.Context(), outside, &bus.Message{}, slow); !bus.IsTimeout(err) || tries != 1 || time.Since(start) != time.Minute {
			t.Errorf("%v after %d tries and %v", err, tries, time.Since(start))
		}
	})
}

// heedful is a poison store that heeds its context, as brokers do.
type heedful struct{ driver.PoisonStore }

func (h heedful) Put(ctx context.Context, es ...driver.PoisonEntry) error {
	return errors.Join(ctx.Err(), h.PoisonStore.Put(ctx, es...))
}

// What timed out can be put into the poison queue: that has its own time.
func TestTimeoutDoesNotReachPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		store, err := driver.Of(b).Poison(t.Context(), "review")
		if err != nil {
			t.Fatal(err)
		}
		poison, timeout := middleware.Poison(heedful{store}, bus.IsTimeout), middleware.Timeout(time.Minute)
		mw := func(next bus.Handler) bus.Handler { return poison(timeout(next)) }
		err = ended(t.Context(), b, mw, &bus.Message{ID: "1"}, func(ctx context.Context, _ *bus.Message) error {
			<-ctx.Done()
			return ctx.Err()
		})
		if !bus.IsIgnored(err) {
			t.Error(err)
		}
		n := 0
		for e, err := range store.List(t.Context()) {
			if n++; err != nil || e.Failure.Class != "timeout" {
				t.Errorf("%+v, %v", e, err)
			}
		}
		if n != 1 {
			t.Errorf("%d poisoned, want 1", n)
		}
	})
}

func TestRetryHonoursWhatTheHandlerSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		delays := []time.Duration{time.Second, 2 * time.Second, 10 * time.Second}
		for name, tc := range map[string]struct {
			err         error
			tries       int
			least, most time.Duration
		}{
			"error":                {errBoom, 4, 13 * time.Second, 14300 * time.Millisecond},
			"permanent":            {bus.Permanent(errBoom), 1, 0, 0},
			"ignored":              {bus.Ignore(errBoom), 1, 0, 0},
			"unavailable":          {bus.Unavailable(errBoom, time.Second), 1, 0, 0},
			"retry after":          {bus.RetryAfter(errBoom, 5*time.Second), 4, 15 * time.Second, 16500 * time.Millisecond},
			"retry after too long": {bus.RetryAfter(errBoom, time.Minute), 1, 0, 0},
		} {
			tries := 0
			start := time.Now()
			err := call(t.Context(), middleware.Retry(delays), &bus.Message{}, func(context.Context, *bus.Message) error {
				tries++
				return tc.err
			})
			if took := time.Since(start); !errors.Is(err, tc.err) || tries != tc.tries || took < tc.least || took > tc.most {
				t.Errorf("%s: %v after %d tries and %v", name, err, tries, took)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		if err := call(ctx, middleware.Retry(delays), &bus.Message{}, func(context.Context, *bus.Message) error { return errBoom }); !errors.Is(err, errBoom) || time.Since(start) >= 2*time.Second {
			t.Errorf("%v after %v: no use in waiting for what comes after the end", err, time.Since(start))
		}
		stopped, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, stop)
		start = time.Now()
		if err := call(stopped, middleware.Retry(delays), &bus.Message{}, func(context.Context, *bus.Message) error { return errBoom }); !errors.Is(err, errBoom) || time.Since(start) != time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// In a batch, only the failed messages are tried again, and outputs of failed tries do not get out.
func TestRetryOfABatch(t *testing.T) {
	b := bustest.New(t)
	var calls []string
	tries := map[string]int{}
	h := batchFunc(func(ctx context.Context, ms []*bus.Message) error {
		var ids string
		errs := make([]error, len(ms))
		for i, m := range ms {
			ids += m.ID
			tries[m.ID]++
			if err := bus.Emit(ctx, "out", fmt.Sprint(m.ID, tries[m.ID]), bus.WithCause(m)); err != nil {
				return err
			}
			switch {
			case m.ID == "b" && tries["b"] < 3, m.ID == "d":
				errs[i] = errBoom
			case m.ID == "c":
				errs[i] = bus.Permanent(errBoom)
			}
		}
		calls = append(calls, ids)
		return bus.PerMessage(errs)
	})
	errs := endedBatch(t.Context(), b, middleware.Retry(make([]time.Duration, 3)), h, &bus.Message{ID: "a"}, &bus.Message{ID: "b"}, &bus.Message{ID: "c"}, &bus.Message{ID: "d"})
	if want := []string{"abcd", "bd", "bd", "d"}; !slices.Equal(calls, want) {
		t.Errorf("calls %v, want %v", calls, want)
	}
	if errs[0] != nil || errs[1] != nil || !bus.IsPermanent(errs[2]) || !errors.Is(errs[3], errBoom) {
		t.Errorf("outcomes %v", errs)
	}
	if got := bustest.Published[string](t, b, "out"); !slices.Equal(got, []string{"a1", "b3"}) {
		t.Errorf("published %v", got)
	}
}

func TestIgnore(t *testing.T) {
	other := errors.New("other")
	mw := middleware.Ignore(router.Is(errBoom))
	for _, tc := range []struct {
		err     error
		ignored bool
	}{{nil, false}, {errBoom, true}, {bus.Permanent(errBoom), true}, {other, false}} {
		err := call(t.Context(), mw, &bus.Message{}, func(context.Context, *bus.Message) error { return tc.err })
		if bus.IsIgnored(err) != tc.ignored || !errors.Is(err, tc.err) {
			t.Errorf("%v became %v", tc.err, err)
		}
	}
	h := &batch{err: bus.PerMessage([]error{errBoom, nil, other})}
	errs := bus.Outcomes(mw(h).(bus.BatchHandler).HandleBatch(t.Context(), []*bus.Message{{}, {}, {}}), 3)
	if !bus.IsIgnored(errs[0]) || errs[1] != nil || bus.IsIgnored(errs[2]) || errs[2] == nil {
		t.Errorf("%v", errs)
	}
}

// fragile is a poison store that may be out of order.
type fragile struct {
	driver.PoisonStore
	err error
}

func (f *fragile) Put(ctx context.Context, es ...driver.PoisonEntry) error {
	if f.err != nil {
		return f.err
	}
	return f.PoisonStore.Put(ctx, es...)
}

func TestPoison(t *testing.T) {
	b := bustest.New(t)
	store, err := driver.Of(b).Poison(t.Context(), "review")
	if err != nil {
		t.Fatal(err)
	}
	f := &fragile{store, errors.New("disk full")}
	mw := middleware.Poison(f, nil)
	refuse := func(ctx context.Context, m *bus.Message) error {
		return errors.Join(bus.Emit(ctx, "out", "x", bus.WithCause(m)), bus.Permanent(errBoom))
	}
	if err := ended(t.Context(), b, mw, &bus.Message{ID: "1"}, refuse); !errors.Is(err, errBoom) || !errors.Is(err, f.err) || bus.IsPermanent(err) || bus.IsIgnored(err) {
		t.Errorf("a store that is out of order must not lose the message: %v", err)
	}
	f.err = nil
	if err := ended(t.Context(), b, mw, &bus.Message{ID: "1", Payload: []byte("p")}, refuse); !bus.IsIgnored(err) || !errors.Is(err, errBoom) {
		t.Errorf("%v", err)
	}
	if err := ended(t.Context(), b, mw, &bus.Message{ID: "2"}, func(context.Context, *bus.Message) error { return errBoom }); !errors.Is(err, errBoom) || bus.IsIgnored(err) {
		t.Errorf("an error that is not meant: %v", err)
	}
	errs := endedBatch(t.Context(), b, mw, batchFunc(func(ctx context.Context, ms []*bus.Message) error {
		return bus.PerMessage([]error{refuse(ctx, ms[0]), bus.Emit(ctx, "out", "fine", bus.WithCause(ms[1]))})
	}), &bus.Message{ID: "3"}, &bus.Message{ID: "4"})
	if !bus.IsIgnored(errs[0]) || errs[1] != nil {
		t.Errorf("batch: %v", errs)
	}
	stopped, stop := context.WithCancel(t.Context())
	if err := call(stopped, mw, &bus.Message{ID: "5"}, func(context.Context, *bus.Message) error { stop(); return bus.Permanent(errBoom) }); bus.IsIgnored(err) {
		t.Error("a message was poisoned because of a shutdown")
	}
	if err := ended(t.Context(), b, middleware.Poison(f, router.As[*router.PanicError]()), &bus.Message{ID: "6"}, func(ctx context.Context, m *bus.Message) error {
		return middleware.Recover()(bus.HandlerFunc(func(context.Context, *bus.Message) error { panic("!") })).Handle(ctx, m)
	}); !bus.IsIgnored(err) {
		t.Error(err)
	}
	var got []string
	for e, err := range store.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Message.ID+" "+e.Failure.Class)
		if e.Topic != "t" || e.Group != "g" || e.Handler != "g/t" || e.Failure.Attempts != 1 || e.Failure.Text == "" || e.ID == "" || (e.Failure.Class == "panic") != (e.Failure.Stack != "") {
			t.Errorf("%+v", e)
		}
	}
	if want := []string{"1 permanent", "3 permanent", "6 panic"}; !slices.Equal(got, want) {
		t.Errorf("poisoned %v, want %v", got, want)
	}
	if got := bustest.Published[string](t, b, "out"); !slices.Equal(got, []string{"fine"}) {
		t.Errorf("outputs of what was poisoned got out: %v", got)
	}
}

// TestPoisonedAgain: a message whose lane is lost before it is settled fails once more, and replaces its entry. A failure after a replay, another
// message with that id and a message of a batch have entries of their own.
func TestPoisonedAgain(t *testing.T) {
	b := bustest.New(t)
	store, err := driver.Of(b).Poison(t.Context(), "review")
	if err != nil {
		t.Fatal(err)
	}
	mw := middleware.Poison(store, nil)
	refuse := func(context.Context, *bus.Message) error { return bus.Permanent(errBoom) }
	fail := func(m *bus.Message, replays int) {
		d := bus.Delivery{Message: m, Topic: "t", Group: "g", Attempt: 1, Failure: &bus.Failure{Replays: replays}}
		if err := mw(bus.HandlerFunc(refuse)).Handle(engine.New(t.Context(), b, d), m); !bus.IsIgnored(err) {
			t.Error(err)
		}
	}
	one, other := &bus.Message{ID: "1", Payload: []byte("a")}, &bus.Message{ID: "1", Payload: []byte("b")}
	for range 2 {
		fail(one, 0)
		fail(other, 0)
		fail(one, 1)
		endedBatch(t.Context(), b, mw, batchFunc(func(context.Context, []*bus.Message) error { return bus.Permanent(errBoom) }), one)
	}
	var got []string
	for e, err := range store.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s%d", e.Message.Payload, e.Failure.Replays))
	}
	if slices.Sort(got); !slices.Equal(got, []string{"a0", "a0", "a0", "a1", "b0"}) { // two of the batches
		t.Errorf("the entries are %v", got)
	}
}

// What was poisoned can be replayed although its handler has Deduplicate, in either order.
func TestPoisonedIsNotRemembered(t *testing.T) {
	b := bustest.New(t)
	store, err := driver.Of(b).Poison(t.Context(), "review")
	if err != nil {
		t.Fatal(err)
	}
	for _, outside := range []bool{false, true} {
		poison, dedup := middleware.Poison(store, nil), middleware.Deduplicate(&middleware.DedupMemory{}, nil)
		mw := func(next bus.Handler) bus.Handler { return poison(dedup(next)) }
		if outside {
			mw = func(next bus.Handler) bus.Handler { return dedup(poison(next)) }
		}
		calls := 0
		h := func(context.Context, *bus.Message) error {
			if calls++; calls == 1 {
				return bus.Permanent(errBoom)
			}
			return nil
		}
		_ = ended(t.Context(), b, mw, &bus.Message{ID: "1"}, h)
		if err := ended(t.Context(), b, mw, &bus.Message{ID: "1"}, h); err != nil || calls != 2 {
			t.Errorf("Deduplicate outside %v: %v after %d calls", outside, err, calls)
		}
	}
}

func TestChaosRepeatsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := middleware.ChaosConfig{Seed: 7, Delay: 0.3, MaxDelay: time.Second, Fail: 0.3, Panic: 0.1, Duplicate: 0.2}
		run := func(config middleware.ChaosConfig) (log []string) {
			mw := middleware.Chaos(config)
			for range 1000 {
				calls := 0
				start := time.Now()
				err := call(t.Context(), func(next bus.Handler) bus.Handler { return middleware.Recover()(mw(next)) }, &bus.Message{}, func(context.Context, *bus.Message) error {
					calls++
					return nil
				})
				_, panicked := errors.AsType[*router.PanicError](err)
				if took := time.Since(start); took > config.MaxDelay || err != nil && !panicked && !errors.Is(err, middleware.ErrChaos) {
					t.Fatalf("%v after %v", err, took)
				}
				log = append(log, fmt.Sprint(calls, " calls, panicked ", panicked, ", failed ", err != nil, ", delayed ", time.Since(start) > 0))
			}
			return log
		}
		first := run(config)
		if !slices.Equal(first, run(config)) {
			t.Error("the same seed made other decisions")
		}
		for what, want := range map[string]int{"delayed true": 300, "panicked true": 100, "2 calls": 180} {
			n := 0
			for _, line := range first {
				if strings.Contains(line, what) {
					n++
				}
			}
			if n < want*7/10 || n > want*13/10 {
				t.Errorf("%s: %d of 1000, want about %d", what, n, want)
			}
		}
		config.Seed++
		if slices.Equal(first, run(config)) {
			t.Error("another seed made the same decisions")
		}
		stopped, stop := context.WithCancel(t.Context())
		stop()
		if err := call(stopped, middleware.Chaos(middleware.ChaosConfig{Delay: 1, MaxDelay: time.Hour}), &bus.Message{}, nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestThrottleByKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mw := middleware.ThrottleBy(func(m *bus.Message) string { return m.Key }, 10, 1)
		start := time.Now()
		took := func(keys ...string) time.Duration {
			var ms []*bus.Message
			for _, k := range keys {
				ms = append(ms, &bus.Message{Key: k})
			}
			if err := mw(&batch{}).(bus.BatchHandler).HandleBatch(t.Context(), ms); err != nil {
				t.Error(err)
			}
			return time.Since(start)
		}
		for _, tc := range []struct {
			keys []string
			want time.Duration
		}{
			{[]string{"a"}, 0},
			{[]string{"b"}, 0},                                     // has a rate of its own
			{[]string{"a"}, 100 * time.Millisecond},                // the second of a
			{[]string{"c", "a", "a", "a"}, 400 * time.Millisecond}, // waits for all
			{[]string{"b"}, 400 * time.Millisecond},
		} {
			if got := took(tc.keys...); got != tc.want {
				t.Errorf("%v at %v, want %v", tc.keys, got, tc.want)
			}
		}
		for i := range 10_000 { // more keys than it keeps at hand
			took(fmt.Sprint("key", i))
		}
		took("late")
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := call(ctx, mw, &bus.Message{Key: "late"}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		start = time.Now()
		if got := took("late"); got != 100*time.Millisecond { // a token given back is not paid for
			t.Errorf("after %v", got)
		}
	})
}

func TestWrongArgumentsReachNoHandler(t *testing.T) {
	for want, mw := range map[string]bus.Middleware{
		"Timeout(-1ns)":                       middleware.Timeout(-1),
		"delay 1 is -2ns":                     middleware.Retry([]time.Duration{0, -2}),
		"Ignore(nil)":                         middleware.Ignore(nil),
		"the store is nil":                    middleware.Poison(nil, nil),
		"Deduplicate: the store is nil":       middleware.Deduplicate(nil, nil),
		"Entries -1":                          middleware.Deduplicate(&middleware.DedupMemory{Entries: -1}, nil),
		"Throttle: the rate is -1 messages":   middleware.Throttle(-1, 1),
		"Throttle: the rate is NaN":           middleware.Throttle(math.NaN(), 1),
		"leave Throttle out":                  middleware.Throttle(2e9, 1),
		"Throttle: the burst is 0":            middleware.Throttle(1, 0),
		"a burst of 1 at 1e-11 messages":      middleware.Throttle(1e-11, 1),
		"ThrottleBy: a burst of 3000000 at":   middleware.ThrottleBy(func(*bus.Message) string { return "" }, 1.0/3600, 3_000_000),
		"ThrottleBy: the key function is nil": middleware.ThrottleBy(nil, 1, 1),
		"ConcurrencyLimit(0)":                 middleware.ConcurrencyLimit(0),
		"ChaosConfig.Fail is 1.5":             middleware.Chaos(middleware.ChaosConfig{Fail: 1.5}),
		"ChaosConfig.MaxDelay is 0s":          middleware.Chaos(middleware.ChaosConfig{Delay: 1}),
		"function that keeps is nil":          middleware.Filter(nil),
		"Validate: the function is nil":       middleware.Validate(nil),
		"Logging: the log is nil":             middleware.Logging(nil),
	} {
		h := mw(&batch{})
		for _, err := range []error{h.Handle(t.Context(), &bus.Message{}), h.(bus.BatchHandler).HandleBatch(t.Context(), nil), h.(interface{ Check() error }).Check()} {
			if !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
		if _, away := bus.UnavailableFor(h.Handle(t.Context(), &bus.Message{})); !away {
			t.Errorf("%s: the message would be poisoned", want)
		}
	}
}
