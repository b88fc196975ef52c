package router_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

func nop(context.Context, *bus.Message) error { return nil }

type idempotent struct{ bus.Handler }

func (idempotent) Idempotent() {}

func TestCheckReportsEveryMistake(t *testing.T) {
	type A struct{}
	type B struct{}
	b := openBus(t)
	single := func(next bus.Handler) bus.Handler {
		return bus.HandlerFunc(func(ctx context.Context, m *bus.Message) error { return next.Handle(ctx, m) })
	}
	for _, tc := range []struct {
		name string
		make func() *router.Router
		want []string
	}{
		{"nothing", func() *router.Router { return router.New(b, "g") }, []string{"no handlers"}},
		{"nil bus", func() *router.Router { return router.New(nil, "g") }, []string{"the bus is nil"}},
		{"names", func() *router.Router {
			r := router.New(b, "my group")
			r.HandleFunc("a/b", nop)
			return r
		}, []string{`group name "my group"`, `topic name "a/b"`}},
		{"values", func() *router.Router {
			r := router.New(b, "g", router.DrainTimeout(-1), router.Hooks(7))
			r.Handle("nil", nil)
			r.HandleFunc("t", nop, router.Workers(0), router.InFlight(0, 0), router.Timeout(-1), router.Fill(0, -1), router.From(bus.StartAt(time.Time{})),
				router.Policy{Retry: router.Schedule{-1}})
			return r
		}, []string{"DrainTimeout", "Hooks", "handler is nil", "Workers is 0", "InFlight is 0", "Timeout", "Fill", "From", "Retry[0]"}},
		{"two for all types", func() *router.Router {
			r := router.New(b, "g")
			r.HandleFunc("t", nop, router.Name("one"))
			r.HandleFunc("t", nop, router.Name("two"))
			return r
		}, []string{"one and two would both take all types"}},
		{"exactly once without transactions", func() *router.Router {
			r := router.New(b, "g", router.Guarantee(router.ExactlyOnce))
			r.HandleFunc("t", nop)
			r.Handle("u", idempotent{bus.HandlerFunc(nop)}) // can keep it
			return r
		}, []string{"handler g/t: exactly once", "memory", "outbox.Once"}},
		{"a guarantee that there is not", func() *router.Router {
			r := router.New(b, "g")
			r.HandleFunc("t", nop, router.Guarantee(7))
			return r
		}, []string{"Guarantee is Level(7)"}},
		{"two for a type", func() *router.Router {
			r := router.New(b, "g")
			router.On(r, "t", func(context.Context, A) error { return nil })
			router.On(r, "t", func(context.Context, B) error { return nil }, router.Accept("A"))
			return r
		}, []string{`would both take type "A"`}},
		{"same name", func() *router.Router {
			r := router.New(b, "g")
			r.HandleFunc("t", nop, router.Name("n"))
			r.HandleFunc("u", nop, router.Name("n"))
			return r
		}, []string{`two handlers are named "n"`}},
		{"conflict", func() *router.Router {
			r := router.New(b, "g")
			router.On(r, "t", func(context.Context, A) error { return nil }, router.Workers(3))
			router.On(r, "t", func(context.Context, B) error { return nil }, router.Workers(4))
			return r
		}, []string{"sets Workers to 4, another one to 3"}},
		{"single middleware over a batch", func() *router.Router {
			r := router.New(b, "g", router.Use(single))
			router.OnBatch(r, "t", func(context.Context, []bus.Event[A]) error { return nil })
			return r
		}, []string{"middleware 1 takes single messages only", "bus.Around"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := tc.make()
			err := r.Check()
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, bus.ErrInvalid) {
					t.Errorf("Check: %v\nwant %q", err, want)
				}
			}
			if rerr := r.Run(t.Context()); rerr == nil || rerr.Error() != err.Error() {
				t.Errorf("Run: %v, want what Check says", rerr)
			}
		})
	}
	r := router.New(b, "g", router.Workers(8))
	router.On(r, "t", func(context.Context, A) error { return nil }, router.Workers(3))
	router.On(r, "t", func(context.Context, B) error { return nil })
	if err := r.Check(); err != nil {
		t.Errorf("the deeper setting wins without a conflict: %v", err)
	}
}

func TestDrainLetsHandlersFinishAndGivesTheRestBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		count := map[string]int{}
		live := true
		handler := func(ctx context.Context, m *bus.Message) error {
			time.Sleep(time.Second)
			live = live && ctx.Err() == nil
			count[m.ID]++
			return nil
		}
		first := router.New(b, "g", router.Workers(1))
		first.HandleFunc("t", handler)
		stop := run(t, first)
		for i := range 10 {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "k"})
		}
		time.Sleep(2500 * time.Millisecond) // in the middle of the third
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if len(count) != 3 || !live {
			t.Fatalf("after the drain: %v, contexts live: %v", count, live)
		}
		second := router.New(b, "g", router.Workers(1))
		second.HandleFunc("t", handler)
		run(t, second)
		time.Sleep(time.Minute)
		synctest.Wait()
		for i := range 10 {
			if count[fmt.Sprint(i)] != 1 {
				t.Errorf("%d was handled %d times", i, count[fmt.Sprint(i)])
			}
		}
	})
}

func TestDrainDoesNotWaitForADelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Hour}})
		r.HandleFunc("t", func(context.Context, *bus.Message) error { return errors.New("later") })
		stop := run(t, r, aFailure)
		publish(t, b, "t", &bus.Message{ID: "m"})
		synctest.Wait()
		start := time.Now()
		if err := stop(); err != nil || time.Since(start) > 0 {
			t.Fatalf("stop: %v after %v", err, time.Since(start))
		}
		r = router.New(b, "g")
		came := make(chan bus.Delivery, 10)
		r.HandleFunc("t", func(ctx context.Context, _ *bus.Message) error {
			came <- bus.DeliveryFrom(ctx)
			return nil
		})
		run(t, r, aFailure)
		time.Sleep(time.Hour - time.Second)
		synctest.Wait()
		if len(came) > 0 {
			t.Error("the restart made the retry come early")
		}
		time.Sleep(time.Hour / 5) // the schedule is jittered
		synctest.Wait()
		if d := <-came; d.ID != "m" || d.Attempt != 2 || len(came) > 0 {
			t.Errorf("%q came, at try %d, and %d more", d.ID, d.Attempt, len(came))
		}
	})
}

func TestDrainTimeoutCancelsHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		// Without a second try, so that a failure which is counted shows at once.
		r := router.New(b, "g", router.DrainTimeout(5*time.Second), router.Policy{Retry: router.Never})
		var cause error
		ended := make(chan struct{})
		r.HandleFunc("t", func(ctx context.Context, _ *bus.Message) error {
			defer close(ended)
			<-ctx.Done()
			cause = context.Cause(ctx)
			time.Sleep(time.Minute)
			return ctx.Err()
		})
		stop := run(t, r, "handlers still run")
		publish(t, b, "t", &bus.Message{ID: "m"})
		synctest.Wait()
		start := time.Now()
		err := stop()
		if err == nil || !strings.Contains(err.Error(), "1 handlers of group") || time.Since(start) != 6*time.Second {
			t.Errorf("stop: %v after %v", err, time.Since(start))
		}
		<-ended
		if cause == nil || !strings.Contains(cause.Error(), "drain timeout") {
			t.Errorf("cause %v", cause)
		}
		synctest.Wait()
		if e := poisoned(t, b, "g"); len(e) != 0 {
			t.Errorf("a shutdown poisoned a healthy message: %v", e)
		}
	})
}

func TestLifecycleMisuse(t *testing.T) {
	testlog.Expect(t, "consuming stops")
	b := openBus(t)
	t.Run("second Run", func(t *testing.T) {
		r := router.New(b, "g")
		r.HandleFunc("t", nop)
		stop := run(t, r, "handler not added")
		if err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "called twice") {
			t.Errorf("second Run: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := r.Run(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("Run after the end: %v", err)
		}
		if err := r.Ready(t.Context()); err != nil {
			t.Errorf("Ready remembers that the start went well: %v", err)
		}
		if err := r.HandleFunc("u", nop).Ready(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("handler after the end: %v", err)
		}
	})
	t.Run("Shutdown before Run", func(t *testing.T) {
		r := router.New(b, "g")
		r.HandleFunc("t", nop)
		for range 2 {
			if err := r.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err := r.Run(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
		if err := r.Ready(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("Ready: %v", err)
		}
	})
	t.Run("Run on a closed bus", func(t *testing.T) {
		closed := openBus(t)
		if err := closed.Close(); err != nil {
			t.Fatal(err)
		}
		r := router.New(closed, "g")
		r.HandleFunc("t", nop)
		if err := r.Run(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
		if h := r.Health().Routes[0]; h.State != router.StateFailed {
			t.Errorf("state %s", h.State)
		}
	})
	t.Run("bus closed under the router", func(t *testing.T) {
		closed := openBus(t)
		r := router.New(closed, "g")
		r.HandleFunc("t", nop)
		over := make(chan error)
		go func() { over <- r.Run(t.Context()) }()
		if err := r.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := closed.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-over; !errors.Is(err, bus.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestGoRunsBesideTheHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		r := router.New(b, "g")
		handling := false
		r.HandleFunc("t", func(context.Context, *bus.Message) error {
			handling = true
			time.Sleep(time.Second)
			handling = false
			return nil
		})
		outlived := false
		r.Go("side", func(ctx context.Context) error {
			<-ctx.Done()
			outlived = !handling
			return nil
		})
		stop := run(t, r)
		publish(t, b, "t", &bus.Message{})
		synctest.Wait()
		if err := stop(); err != nil || !outlived {
			t.Errorf("run: %v; its context outlived the handlers: %v", err, outlived)
		}
		boom := errors.New("boom")
		r = router.New(b, "g")
		r.HandleFunc("t", nop)
		r.Go("side", func(context.Context) error { return boom })
		if err := r.Run(t.Context()); !errors.Is(err, boom) || !strings.Contains(err.Error(), "side") {
			t.Errorf("run: %v", err)
		}
	})
}

func TestPauseResumeStopAndAdd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		count := map[string]int{}
		h := func(ctx context.Context, _ *bus.Message) error {
			count[bus.DeliveryFrom(ctx).Handler]++
			return nil
		}
		r := router.New(b, "g")
		one := r.HandleFunc("one", h)
		stop := run(t, r, "handler not added")
		one.Pause()
		publish(t, b, "one", &bus.Message{})
		synctest.Wait()
		if count["g/one"] != 0 || one.Health().State != router.StatePaused || r.Health().Err() != nil {
			t.Fatalf("paused: %v, %+v", count, one.Health())
		}
		one.Resume()
		synctest.Wait()
		if count["g/one"] != 1 {
			t.Fatalf("resumed: %v", count)
		}
		two := r.HandleFunc("two", h)
		if err := two.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.HandleFunc("two", h, router.Name("other")).Ready(t.Context()); err == nil {
			t.Error("a second handler for a topic that is consumed must be refused")
		}
		publish(t, b, "two", &bus.Message{})
		synctest.Wait()
		if count["g/two"] != 1 {
			t.Fatalf("added: %v", count)
		}
		if err := two.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		publish(t, b, "two", &bus.Message{})
		synctest.Wait()
		if count["g/two"] != 1 || two.Health().State != router.StateStopped {
			t.Fatalf("stopped: %v", count)
		}
		again := r.HandleFunc("two", h)
		if err := again.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if count["g/two"] != 2 {
			t.Fatalf("added again: %v", count)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestShutdownCutsTheDrainShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		r := router.New(b, "g", router.DrainTimeout(time.Hour))
		r.HandleFunc("t", func(ctx context.Context, _ *bus.Message) error { <-ctx.Done(); return ctx.Err() })
		run(t, r, "handlers still run")
		publish(t, b, "t", &bus.Message{})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_ = r.Shutdown(ctx)
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// TestStoppedHandlersAreForgotten: handlers that come and go while the router runs leave nothing
// behind. One that failed is seen until another takes its place.
func TestStoppedHandlersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		r := router.New(b, "g", router.Logger(testlog.New(t, "consuming stops")))
		r.HandleFunc("t", nop)
		run(t, r)
		add := func(group string, err error) *router.Route {
			route := r.Group(group).HandleFunc("u", func(context.Context, *bus.Message) error { return err }, router.Policy{Retry: router.Never, Then: router.Stop})
			synctest.Wait()
			return route
		}
		for i := range 20 {
			if err := add(fmt.Sprint("group", i), nil).Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		publish(t, b, "u", &bus.Message{ID: "1"})
		add("failing", errLater)
		add("working", nil)
		if n, h := router.Consumers(r), r.Health(); n != 3 || len(h.Routes) != 3 || h.Err() == nil {
			t.Errorf("%d consumers, health %+v", n, h)
		}
		add("failing", nil)
		if n, h := router.Consumers(r), r.Health(); n != 3 || len(h.Routes) != 3 || h.Err() != nil {
			t.Errorf("%d consumers, health %+v", n, h)
		}
	})
}
