package router_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// openBus is a memory bus that is closed at the test's end.
func openBus(t *testing.T) *bus.Bus {
	t.Helper()
	b, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// Warnings and errors that tests expect in the log.
const (
	aFailure   = "handler failed"
	aPoisoning = "message poisoned"
	aPause     = "not available; consuming pauses"
)

// run runs r until the test ends, or until the returned function is called, which returns Run's error. Unless r has a log of its own, a warning
// or an error in it that contains none of the allowed texts fails the test.
func run(t *testing.T, r *router.Router, allowed ...string) (stop func() error) {
	t.Helper()
	router.LogTo(r, testlog.New(t, allowed...))
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-over
	})
	t.Cleanup(func() { _ = stop() })
	if err := r.Ready(ctx); err != nil {
		t.Fatalf("not ready: %v", err)
	}
	return stop
}

func publish(t *testing.T, b *bus.Bus, topic string, msgs ...*bus.Message) {
	t.Helper()
	if err := b.PublishMessages(t.Context(), topic, msgs...); err != nil {
		t.Fatal(err)
	}
}

func poisoned(t *testing.T, b *bus.Bus, group string) []driver.PoisonEntry {
	t.Helper()
	store, err := driver.Of(b).Poison(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	var entries []driver.PoisonEntry
	for e, err := range store.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries
}

func TestRetriesKeepTheKeysOrderAndLetOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var mu sync.Mutex
		var handled []string
		var attempts []int
		r := router.New(b, "g", router.Workers(4), router.Policy{Retry: router.Schedule{time.Minute, time.Hour}})
		r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			d := bus.DeliveryFrom(ctx)
			if m.ID == "a1" {
				attempts = append(attempts, d.Attempt)
				if d.Attempt < 3 {
					return errors.New("not yet")
				}
			}
			handled = append(handled, m.ID)
			return nil
		})
		run(t, r, aFailure)
		start := time.Now()
		publish(t, b, "t", &bus.Message{ID: "a1", Key: "a"}, &bus.Message{ID: "a2", Key: "a"})
		synctest.Wait()
		publish(t, b, "t", &bus.Message{ID: "b1", Key: "b"})
		synctest.Wait()
		mu.Lock()
		if !slices.Equal(handled, []string{"b1"}) {
			t.Fatalf("before the retry: %v", handled)
		}
		mu.Unlock()
		time.Sleep(59 * time.Second)
		synctest.Wait()
		mu.Lock()
		if len(attempts) != 1 {
			t.Fatalf("tried %d times before the delay was over", len(attempts))
		}
		mu.Unlock()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if !slices.Equal(handled, []string{"b1", "a1", "a2"}) || !slices.Equal(attempts, []int{1, 2, 3}) {
			t.Fatalf("handled %v, attempts %v", handled, attempts)
		}
		if time.Since(start) < time.Hour+time.Minute {
			t.Error("virtual time went wrong")
		}
	})
}

func TestFailuresGoToThePoisonQueueWithTheReason(t *testing.T) {
	type order struct{ ID string }
	boom := errors.New("boom")
	for _, tc := range []struct {
		name     string
		msg      bus.Message
		policy   router.Policy
		handle   func(context.Context, order) error
		class    string
		text     string
		attempts int
		opts     []router.Option
	}{
		{name: "permanent", handle: func(context.Context, order) error { return bus.Permanent(boom) }, class: "permanent", text: "boom", attempts: 1},
		{name: "permanent by policy", policy: router.Policy{Permanent: router.Is(boom)}, handle: func(context.Context, order) error { return fmt.Errorf("x: %w", boom) }, class: "permanent", text: "x: boom", attempts: 1},
		{name: "exhausted", policy: router.Policy{Retry: router.Schedule{time.Second, time.Second}}, handle: func(context.Context, order) error { return boom }, class: "retries exhausted", text: "boom", attempts: 3},
		{name: "too old", policy: router.Policy{Retry: router.Schedule{time.Second, time.Hour}, MaxAge: time.Minute}, handle: func(context.Context, order) error { return boom }, class: "retries exhausted", text: "boom", attempts: 2},
		{name: "panic", policy: router.Policy{Retry: router.Never}, handle: func(context.Context, order) error { panic("ouch") }, class: "panic", text: "panic: ouch", attempts: 1},
		{name: "goexit", policy: router.Policy{Retry: router.Never}, handle: func(context.Context, order) error { runtime.Goexit(); return nil }, class: "panic", text: router.ErrGoexit.Error(), attempts: 1},
		{name: "timeout", policy: router.Policy{Retry: router.Never}, opts: []router.Option{router.Timeout(time.Second)}, handle: func(ctx context.Context, _ order) error { <-ctx.Done(); return ctx.Err() }, class: "timeout", text: "context deadline exceeded", attempts: 1},
		{name: "undecodable", msg: bus.Message{Type: "order", Payload: []byte("{")}, handle: func(context.Context, order) error { return nil }, class: "undecodable", text: "unexpected end of JSON", attempts: 1},
		{name: "unknown type", msg: bus.Message{Type: "other"}, handle: func(context.Context, order) error { return nil }, class: "unknown type", text: `no handler takes messages of type "other"; there are handlers for order`},
		{name: "structured mode damaged", msg: bus.Message{ContentType: "application/cloudevents+json", Payload: []byte("{}")}, handle: func(context.Context, order) error { return nil }, class: "undecodable", text: "attribute id is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := openBus(t)
				r := router.New(b, "g", tc.policy, router.Skip("none"))
				router.On(r, "t", tc.handle, tc.opts...)
				run(t, r, aFailure, aPoisoning)
				msg := tc.msg
				msg.ID, msg.Key = "m1", "k"
				if msg.Payload == nil {
					msg.Payload = []byte(`{"ID":"o1"}`)
				}
				publish(t, b, "t", &msg, &bus.Message{ID: "next", Key: "k", Type: "none"})
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				entries := poisoned(t, b, "g")
				if len(entries) != 1 {
					t.Fatalf("%d entries", len(entries))
				}
				e := entries[0]
				if e.Failure.Class != tc.class || !strings.Contains(e.Failure.Text, tc.text) || e.Failure.Attempts != tc.attempts {
					t.Errorf("class %q, text %q, %d attempts", e.Failure.Class, e.Failure.Text, e.Failure.Attempts)
				}
				if e.Message.ID != "m1" || string(e.Message.Payload) != string(msg.Payload) || e.Topic != "t" || e.Group != "g" || e.Host == "" {
					t.Errorf("entry %+v", e)
				}
				if (tc.class == "panic") != strings.Contains(e.Failure.Stack, "router_test") {
					t.Errorf("stack %q", e.Failure.Stack)
				}
				if n := r.Health().Routes[0].InFlight; n != 0 {
					t.Errorf("%d in flight", n)
				}
			})
		})
	}
}

func TestWhatTheHandlerSaysWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var at []time.Duration
		start := time.Now()
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Second, time.Second}})
		r.HandleFunc("later", func(context.Context, *bus.Message) error {
			at = append(at, time.Since(start).Truncate(time.Second))
			return bus.RetryAfter(errors.New("busy"), time.Hour)
		})
		r.HandleFunc("ignored", func(context.Context, *bus.Message) error { return bus.Ignore(errors.New("known")) })
		run(t, r, aFailure, aPoisoning)
		publish(t, b, "later", &bus.Message{})
		publish(t, b, "ignored", &bus.Message{})
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if want := []time.Duration{0, time.Hour, 2 * time.Hour}; !slices.Equal(at, want) {
			t.Errorf("tried at %v, want %v", at, want)
		}
		if entries := poisoned(t, b, "g"); len(entries) != 1 || entries[0].Topic != "later" {
			t.Errorf("poisoned: %v", entries)
		}
	})
}

func TestActionsAfterTheLastTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		boom := errors.New("boom")
		r := router.New(b, "g", router.Policy{Retry: router.Never})
		handled := 0
		r.HandleFunc("drop", func(_ context.Context, m *bus.Message) error {
			if m.ID == "bad" {
				return boom
			}
			handled++
			return nil
		}, router.Policy{Retry: router.Never, Then: router.Drop})
		halted := r.HandleFunc("stop", func(context.Context, *bus.Message) error { return boom }, router.Policy{Retry: router.Never, Then: router.Stop})
		stop := run(t, r, aFailure, "consuming stops")
		publish(t, b, "drop", &bus.Message{ID: "bad", Key: "k"}, &bus.Message{Key: "k"})
		publish(t, b, "stop", &bus.Message{ID: "kept"})
		synctest.Wait()
		if handled != 1 || len(poisoned(t, b, "g")) != 0 {
			t.Errorf("drop: %d handled, %v poisoned", handled, poisoned(t, b, "g"))
		}
		if h := halted.Health(); h.State != router.StateFailed || !errors.Is(h.Err, boom) {
			t.Errorf("stopped handler: %+v", h)
		}
		if err := r.Health().Err(); err == nil || !strings.Contains(err.Error(), "its policy says stop") {
			t.Errorf("health: %v", err)
		}
		if err := stop(); err != nil {
			t.Errorf("run: %v", err)
		}
		// The message was not settled: another router gets it.
		r = router.New(b, "g")
		var got string
		r.HandleFunc("stop", func(_ context.Context, m *bus.Message) error { got = m.ID; return nil })
		run(t, r, aFailure, "consuming stops")
		synctest.Wait()
		if got != "kept" {
			t.Errorf("after Stop the message was lost (%q)", got)
		}
	})
}

func TestTypesFindTheirHandlers(t *testing.T) {
	type A struct{ N int }
	type B struct{ N int }
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var got []string
		var mu sync.Mutex
		note := func(s string) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, s)
		}
		r := router.New(b, "both")
		router.On(r, "t", func(_ context.Context, e A) error { note(fmt.Sprint("A", e.N)); return nil })
		router.On(r, "t", func(_ context.Context, e B) error { note(fmt.Sprint("B", e.N)); return nil })
		only := r.Group("only")
		router.On(only, "t", func(_ context.Context, e A) error { note(fmt.Sprint("only A", e.N)); return nil })
		rest := r.Group("rest")
		router.On(rest, "t", func(_ context.Context, e B) error { note(fmt.Sprint("rest B", e.N)); return nil })
		rest.HandleFunc("t", func(_ context.Context, m *bus.Message) error { note("rest " + m.Type); return nil })
		run(t, r, aPoisoning)
		publish(t, b, "t",
			&bus.Message{Type: "A", Payload: []byte(`{"N":1}`)},
			&bus.Message{Type: "B", Payload: []byte(`{"N":2}`)},
			&bus.Message{Type: "C", Payload: []byte(`{}`)},
			&bus.Message{Payload: []byte(`{"N":4}`)})
		synctest.Wait()
		slices.Sort(got)
		want := []string{"A1", "B2", "only A1", "only A4", "rest ", "rest A", "rest B2", "rest C"}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		for _, h := range r.Health().Routes {
			want := map[string]uint64{"both": 2, "only": 2, "rest": 0}[h.Group]
			if h.Unknown != want || h.Skipped != 0 || h.InFlight != 0 {
				t.Errorf("%s: %d unknown, want %d; %d skipped, %d in flight", h.Name, h.Unknown, want, h.Skipped, h.InFlight)
			}
			if n := len(poisoned(t, b, h.Group)); n != int(want) {
				t.Errorf("%s: %d poisoned, want %d", h.Group, n, want)
			}
		}
	})
}

func TestBatches(t *testing.T) {
	type E struct{ N int }
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var sizes []int
		tries := map[string]int{}
		start := time.Now()
		var waited time.Duration
		r := router.New(b, "g", router.Workers(2), router.Policy{Retry: router.Schedule{time.Second}})
		router.OnBatch(r, "t", func(_ context.Context, es []bus.Event[E]) error {
			if len(sizes) == 0 {
				waited = time.Since(start)
			}
			sizes = append(sizes, len(es))
			errs := make([]error, len(es))
			keys := map[string]bool{}
			for i, e := range es {
				if keys[e.Key] {
					t.Errorf("two of key %q in a batch", e.Key)
				}
				keys[e.Key] = true
				tries[e.ID]++
				if e.Value.N == 3 && tries[e.ID] == 1 {
					errs[i] = errors.New("once")
				}
				if e.Value.N == 4 {
					errs[i] = bus.Permanent(errors.New("never"))
				}
			}
			return bus.PerMessage(errs)
		}, router.Fill(10, time.Minute))
		run(t, r, aFailure, aPoisoning)
		for n := range 5 {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(n), Key: fmt.Sprint(n), Payload: fmt.Appendf(nil, `{"N":%d}`, n)})
		}
		publish(t, b, "t", &bus.Message{ID: "bad", Payload: []byte(`?`)}, &bus.Message{ID: "5", Key: "3", Payload: []byte(`{}`)})
		time.Sleep(time.Hour)
		synctest.Wait()
		if waited != time.Minute {
			t.Errorf("a batch that is not full waited %v", waited)
		}
		if sizes[0] != 5 {
			t.Errorf("first batch of %d", sizes[0])
		}
		want := map[string]int{"0": 1, "1": 1, "2": 1, "3": 2, "4": 1, "5": 1}
		for id, n := range want {
			if tries[id] != n {
				t.Errorf("%s was tried %d times, want %d", id, tries[id], n)
			}
		}
		var ids []string
		for _, e := range poisoned(t, b, "g") {
			ids = append(ids, e.Message.ID+" "+e.Failure.Class)
		}
		slices.Sort(ids)
		if !slices.Equal(ids, []string{"4 permanent", "bad undecodable"}) {
			t.Errorf("poisoned %q", ids)
		}
	})
}

func TestEmitGoesWithSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var out []string
		var leaked context.Context
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Second}})
		r.HandleFunc("in", func(ctx context.Context, m *bus.Message) error {
			leaked = ctx
			attempt := bus.DeliveryFrom(ctx).Attempt
			if err := bus.Emit(ctx, "out", "x", bus.WithID(fmt.Sprint(m.ID, "/", attempt))); err != nil {
				return err
			}
			if attempt == 1 {
				return errors.New("fails after it emitted")
			}
			return nil
		})
		r.HandleFunc("out", func(_ context.Context, m *bus.Message) error { out = append(out, m.ID); return nil })
		run(t, r, aFailure)
		publish(t, b, "in", &bus.Message{ID: "m"})
		time.Sleep(time.Minute)
		synctest.Wait()
		if !slices.Equal(out, []string{"m/2"}) {
			t.Errorf("emitted %q", out)
		}
		if err := bus.Emit(leaked, "out", "late"); err == nil {
			t.Error("Emit after the handler's return must fail")
		}
		if err := bus.Emit(t.Context(), "out", "x"); err == nil {
			t.Error("Emit outside of a handler must fail")
		}
	})
}

func TestMiddlewareOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var trace []string
		mark := func(name string) bus.Middleware {
			return bus.Around(func(ctx context.Context, c bus.Call) error {
				trace = append(trace, fmt.Sprint(name, c.Len()))
				return c.Next(ctx)
			})
		}
		r := router.New(b, "g", router.Use(mark("new")))
		r.Use(mark("use"))
		h := func(context.Context, *bus.Message) error { trace = append(trace, "handler"); return nil }
		r.With(router.Use(mark("with"))).HandleFunc("t", h, router.Use(mark("own")))
		run(t, r)
		publish(t, b, "t", &bus.Message{})
		synctest.Wait()
		if want := []string{"new1", "use1", "with1", "own1", "handler"}; !slices.Equal(trace, want) {
			t.Errorf("got %v, want %v", trace, want)
		}
	})
}

func TestConcurrencyIsTheNumberOfWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var mu sync.Mutex
		now, most := 0, 0
		perKey := map[string]int{}
		r := router.New(b, "g", router.Workers(40))
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			mu.Lock()
			now++
			most = max(most, now)
			if perKey[m.Key]++; m.Key != "" && perKey[m.Key] > 1 {
				t.Errorf("key %q is handled twice at once", m.Key)
			}
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			perKey[m.Key]--
			mu.Unlock()
			return nil
		})
		run(t, r)
		start := time.Now()
		for i := range 400 {
			publish(t, b, "t", &bus.Message{Key: fmt.Sprint(i % 100)})
		}
		for r.Health().Routes[0].Handled < 400 {
			time.Sleep(100 * time.Millisecond)
		}
		if most != 40 {
			t.Errorf("%d at once, want 40", most)
		}
		if took := time.Since(start); took > 11*time.Second {
			t.Errorf("400 calls of 1 s on 40 workers took %v", took)
		}
	})
}

// TestSlowCallDoesNotHoldBackWhatItsWorkerTook: after many quick calls a worker takes several messages at once; if
// the first turns out to be slow, the others must not wait for it.
func TestSlowCallDoesNotHoldBackWhatItsWorkerTook(t *testing.T) {
	b := openBus(t)
	gate := make(chan struct{})
	var mu sync.Mutex
	seen := map[string]bool{}
	rest := make(chan struct{})
	r := router.New(b, "g", router.Workers(4))
	r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
		if m.ID == "slow" {
			<-gate
		}
		mu.Lock()
		defer mu.Unlock()
		seen[m.ID] = true
		if len(seen) == 5099 {
			close(rest)
		}
		return nil
	})
	stop := run(t, r)
	var msgs []*bus.Message
	for i := range 5100 {
		m := &bus.Message{ID: fmt.Sprint(i)}
		if i == 5000 {
			m.ID = "slow"
		}
		msgs = append(msgs, m)
	}
	publish(t, b, "t", msgs...)
	<-rest // hangs, if something waits behind the slow one
	close(gate)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestInFlightIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		gate := make(chan struct{})
		r := router.New(b, "g", router.Workers(3), router.InFlight(10, 100_000))
		r.HandleFunc("count", func(context.Context, *bus.Message) error { <-gate; return nil })
		r.HandleFunc("bytes", func(context.Context, *bus.Message) error { <-gate; return nil })
		run(t, r)
		for range 100 {
			publish(t, b, "count", &bus.Message{})
			publish(t, b, "bytes", &bus.Message{Payload: make([]byte, 40_000)})
		}
		synctest.Wait()
		for _, h := range r.Health().Routes {
			if want := map[string]int{"count": 10, "bytes": 3}[h.Topic]; h.InFlight > want || h.InFlight < 2 {
				t.Errorf("%s: %d in flight, want at most %d", h.Topic, h.InFlight, want)
			}
		}
		close(gate)
		synctest.Wait()
		for _, h := range r.Health().Routes {
			if h.Handled != 100 || h.InFlight != 0 {
				t.Errorf("%s: %d handled, %d in flight", h.Topic, h.Handled, h.InFlight)
			}
		}
	})
}

// mistaken is a handler that middleware makes when its arguments make no sense.
type mistaken struct{ bus.HandlerFunc }

func (mistaken) Check() error { return errors.New("Rate is -1: want more than 0") }

func TestMistakenMiddlewareIsAnErrorOfCheck(t *testing.T) {
	r := router.New(openBus(t), "g")
	r.HandleFunc("t", nothing, router.Use(func(bus.Handler) bus.Handler { return mistaken{nothing} }))
	if err := r.Check(); err == nil || !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "middleware 1: Rate is -1") {
		t.Errorf("%v", err)
	}
}

func nothing(context.Context, *bus.Message) error { return nil }
