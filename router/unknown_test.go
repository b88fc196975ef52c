package router_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// typesOf adds a handler of types to r, which notes what it handles.
func typesOf(r *router.Router, topic string, j *journal, types ...string) {
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error { j.note(m); return nil }, router.Accept(types...))
}

// A message of a type that no handler takes goes to the poison queue; the others of its key come in
// their order, and a replay brings it to a new version of the group.
func TestUnknownTypeIsPoisonedAndReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var old, both journal
		first := router.New(b, "g")
		typesOf(first, "t", &old, "v1")
		stop := run(t, first, aPoisoning)
		for i := range 6 {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "k", Type: []string{"v1", "v2"}[i%2]})
		}
		synctest.Wait()
		if got := old.of("k"); !slices.Equal(got, []string{"0", "2", "4"}) {
			t.Errorf("the old version has handled %v", got)
		}
		if h := first.Health().Routes[0]; h.Unknown != 3 || h.Skipped != 0 || h.Poisoned != 0 || h.InFlight != 0 {
			t.Errorf("health: %+v", h)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		second := router.New(b, "g")
		typesOf(second, "t", &both, "v1")
		typesOf(second, "t", &both, "v2")
		run(t, second)
		q, err := poison.Open(t.Context(), b, "g")
		if err != nil {
			t.Fatal(err)
		}
		if r, err := q.Replay(t.Context(), poison.Filter{Class: "unknown type"}, poison.Options{}); err != nil || r.Done != 3 {
			t.Fatalf("%+v %v", r, err)
		}
		synctest.Wait()
		if got := both.of("k"); !slices.Equal(got, []string{"1", "3", "5"}) || len(poisoned(t, b, "g")) != 0 {
			t.Errorf("after the replay: %v handled, %d in the poison queue", got, len(poisoned(t, b, "g")))
		}
	})
}

// With KeyWaits the key waits for a message that no handler takes, and the lane's next owner, which
// takes it, has all of the key in order.
func TestKeyWaitsForAnUnknownType(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var old, both journal
		first := router.New(b, "g", router.Policy{KeyWaits: true})
		typesOf(first, "t", &old, "v1")
		stop := run(t, first, aPoisoning)
		for i, typ := range []string{"v1", "v2", "v1", "v2", "v1"} {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "k", Type: typ})
		}
		publish(t, b, "t", &bus.Message{ID: "0", Key: "other", Type: "v1"})
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := old.of(""); !slices.Equal(got, []string{"k0", "other0"}) && !slices.Equal(got, []string{"other0", "k0"}) {
			t.Errorf("the old version has handled %v", got)
		}
		if es := poisoned(t, b, "g"); len(es) != 1 || !es[0].Waits || es[0].Failure.Class != "unknown type" {
			t.Errorf("poisoned: %+v", es)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		second := router.New(b, "g", router.Policy{KeyWaits: true})
		typesOf(second, "t", &both, "v1", "v2")
		run(t, second)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := both.of("k"); !slices.Equal(got, []string{"1", "2", "3", "4"}) || len(poisoned(t, b, "g")) != 0 {
			t.Errorf("the new version has handled %v; %d in the poison queue", got, len(poisoned(t, b, "g")))
		}
	})
}

// A message that is published with a delay is judged when it is due, by the version that runs then.
func TestDelayedUnknownTypeIsJudgedWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var old, both journal
		first := router.New(b, "g")
		typesOf(first, "t", &old, "v1")
		stop := run(t, first)
		if err := b.Publish(t.Context(), "t", &bus.Message{ID: "1", Key: "k", Type: "v2"}, bus.WithDelay(time.Hour)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		second := router.New(b, "g")
		typesOf(second, "t", &both, "v1", "v2")
		run(t, second)
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := both.of("k"); !slices.Equal(got, []string{"1"}) || len(poisoned(t, b, "g")) != 0 {
			t.Errorf("%v handled, %d poisoned", got, len(poisoned(t, b, "g")))
		}
	})
}

// skippedHook counts what it is told of by type.
type skippedHook struct {
	mu     sync.Mutex
	byType map[string]uint64
}

func (h *skippedHook) Skipped(_ context.Context, d bus.Delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byType == nil {
		h.byType = map[string]uint64{}
	}
	h.byType[d.Type]++
}

func TestSkip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j, all journal
		hook := &skippedHook{}
		var text bytes.Buffer
		log := router.Logger(slog.New(slog.NewTextHandler(&text, nil)))
		r := router.New(b, "g", router.Hooks(hook), log, router.Skip("x", ""))
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { j.note(m); return nil }, router.Accept("a"), router.Skip("y"))
		r.HandleFunc("all", func(_ context.Context, m *bus.Message) error { all.note(m); return nil })
		run(t, r)
		for i := range 3 {
			for _, typ := range []string{"a", "x", "", "y"} {
				publish(t, b, "t", &bus.Message{ID: fmt.Sprint(typ, i), Key: "k", Type: typ})
				publish(t, b, "all", &bus.Message{ID: fmt.Sprint(typ, i), Key: "k", Type: typ})
			}
		}
		synctest.Wait()
		if got := j.of("k"); !slices.Equal(got, []string{"a0", "a1", "a2"}) {
			t.Errorf("handled %v", got)
		}
		if got := all.of("k"); !slices.Equal(got, []string{"a0", "y0", "a1", "y1", "a2", "y2"}) {
			t.Errorf("the handler of all other types has handled %v", got)
		}
		if h := r.Health().Routes[0]; h.Skipped != 9 || !maps.Equal(h.SkippedTypes, map[string]uint64{"x": 3, "": 3, "y": 3}) || h.Unknown != 0 || h.InFlight != 0 {
			t.Errorf("health: %+v", h)
		}
		if want := map[string]uint64{"x": 6, "": 6, "y": 3}; !maps.Equal(hook.byType, want) {
			t.Errorf("the hook was told of %v, want %v", hook.byType, want)
		}
		if n := strings.Count(text.String(), "level=INFO msg=\"messages of a type are skipped"); n != 5 || strings.Contains(text.String(), "level=WARN") {
			t.Errorf("%d records, want 5 of level INFO:\n%s", n, text.String())
		}
		if n := len(poisoned(t, b, "g")); n != 0 {
			t.Errorf("%d poisoned", n)
		}
	})
}

func TestSkipUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		hook := &skippedHook{}
		var text bytes.Buffer
		r := router.New(b, "g", router.Hooks(hook), router.Logger(slog.New(slog.NewTextHandler(&text, nil))))
		typesOf(r, "t", &j, "a")
		typesOf(r.With(router.SkipUnknown()), "t", &j, "b")
		run(t, r)
		for i := range 3 {
			for _, typ := range []string{"a", "x", "b", "", "y"} {
				publish(t, b, "t", &bus.Message{ID: fmt.Sprint(typ, i), Key: "k", Type: typ})
			}
		}
		synctest.Wait()
		if got := j.of("k"); !slices.Equal(got, []string{"a0", "b0", "a1", "b1", "a2", "b2"}) {
			t.Errorf("handled %v", got)
		}
		want := map[string]uint64{"x": 3, "y": 3}
		for _, h := range r.Health().Routes {
			if h.Skipped != 6 || !maps.Equal(h.SkippedTypes, want) || h.Unknown != 3 || h.InFlight != 0 {
				t.Errorf("health: %+v", h)
			}
		}
		if !maps.Equal(hook.byType, want) {
			t.Errorf("the hook was told of %v, want %v", hook.byType, want)
		}
		for _, typ := range []string{"x", "y"} {
			if n := strings.Count(text.String(), "type="+typ+"\n"); n != 1 {
				t.Errorf("%d records of type %s, want 1:\n%s", n, typ, text.String())
			}
		}
		for _, e := range poisoned(t, b, "g") {
			if e.Message.Type != "" || !strings.Contains(e.Failure.Text, "the message has no type") {
				t.Errorf("poisoned: %+v", e)
			}
		}
	})
}

// The log, and what Health counts by type, are bounded: publishers choose the types.
func TestSkipUnknownIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var text bytes.Buffer
		r := router.New(b, "g", router.SkipUnknown(), router.Logger(slog.New(slog.NewTextHandler(&text, nil))))
		r.HandleFunc("t", nop, router.Accept("a"))
		run(t, r)
		for range 2 {
			for i := range 500 {
				publish(t, b, "t", &bus.Message{Type: fmt.Sprint(strings.Repeat("x", 200), i)})
			}
		}
		synctest.Wait()
		if h := r.Health().Routes[0]; h.Skipped != 1000 || len(h.SkippedTypes) != 100 {
			t.Errorf("%d skipped, %d types", h.Skipped, len(h.SkippedTypes))
		}
		warnings := slices.DeleteFunc(strings.Split(text.String(), "\n"), func(l string) bool { return !strings.Contains(l, "level=WARN") })
		if len(warnings) != 101 || !strings.Contains(warnings[100], "further types") || strings.Contains(text.String(), strings.Repeat("x", 129)) {
			t.Errorf("%d warnings, the last: %s", len(warnings), warnings[len(warnings)-1])
		}
	})
}

// What a handler of the group has had once, or the poison queue, is not lost by a version that skips.
func TestSkipLosesNothingThatWasTaken(t *testing.T) {
	for name, opt := range map[string]router.Option{"named": router.Skip("v2"), "unknown": router.SkipUnknown()} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := openBus(t)
				var j journal
				first := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Hour}})
				first.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
					if m.ID == "refused" {
						return bus.Permanent(errLater)
					}
					return errLater
				}, router.Accept("v2"))
				stop := run(t, first, aFailure, aPoisoning)
				publish(t, b, "t", &bus.Message{ID: "refused", Key: "k", Type: "v2"}, &bus.Message{ID: "later", Key: "k", Type: "v2"})
				if err := b.Publish(t.Context(), "t", &bus.Message{ID: "delayed", Key: "k", Type: "v2"}, bus.WithDelay(time.Hour)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				second := router.New(b, "g", opt)
				typesOf(second, "t", &j, "v1")
				run(t, second, aPoisoning)
				q, err := poison.Open(t.Context(), b, "g")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := q.Replay(t.Context(), poison.Filter{}, poison.Options{}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				var ids []string
				for _, e := range poisoned(t, b, "g") {
					ids = append(ids, e.Message.ID)
				}
				slices.Sort(ids)
				if h := second.Health().Routes[0]; !slices.Equal(ids, []string{"delayed", "later", "refused"}) || h.Skipped != 0 || h.Unknown != 3 {
					t.Errorf("poisoned are %v; health: %+v", ids, h)
				}
			})
		})
	}
}

// The end of a stream is Millrace's own message, which no handler need take.
func TestEndOfAStreamIsNoUnknownType(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		r := router.New(b, "g")
		typesOf(r, "t", &j, "a")
		run(t, r)
		publish(t, b, "t", &bus.Message{Key: "k", Type: "millrace.stream.closed"})
		synctest.Wait()
		if h := r.Health().Routes[0]; h.Unknown != 0 || h.Skipped != 1 || len(poisoned(t, b, "g")) != 0 {
			t.Errorf("health: %+v", h)
		}
	})
}

type (
	generic[T any] struct{ V T }
	byPointer      struct{ N int }
	keyByPointer   struct{ N int }
	defined        generic[int]
	named[T any]   struct{ V T }
	plainEvent     struct{ N int }
)

func (*byPointer) EventType() string     { return "by.pointer" }
func (e *keyByPointer) EventKey() string { return fmt.Sprint(e.N) }
func (named[T]) EventType() string       { return "named" }

func ok[T any](context.Context, T) error                   { return nil }
func okBatch[T any](context.Context, []bus.Event[T]) error { return nil }

// Check refuses handlers that compile and can't be meant.
func TestCheckRefusesWhatCannotBeMeant(t *testing.T) {
	b := openBus(t)
	pass := bus.Around(func(ctx context.Context, c bus.Call) error { return c.Next(ctx) })
	for _, tc := range []struct {
		name string
		add  func(r *router.Router)
		want string // "" if there is nothing wrong
	}{
		{"bus.Event", func(r *router.Router) { router.On(r, "t", ok[bus.Event[plainEvent]]) }, "bus.Event[github.com/millrace-go/millrace/router_test.plainEvent] belongs to package bus"},
		{"pointer to bus.Event", func(r *router.Router) { router.On(r, "t", ok[*bus.Event[plainEvent]]) }, "belongs to package bus"},
		{"*bus.Message", func(r *router.Router) { router.On(r, "t", ok[*bus.Message]) }, "*bus.Message belongs to package bus"},
		{"bus.Message", func(r *router.Router) { router.On(r, "t", ok[bus.Message]) }, "router.HandleFunc"},
		{"bus.Cancellation", func(r *router.Router) { router.On(r, "t", ok[bus.Cancellation]) }, "belongs to package bus"},
		{"batch of bus.Event", func(r *router.Router) { router.OnBatch(r, "t", okBatch[bus.Event[plainEvent]]) }, "belongs to package bus"},
		{"batch of *bus.Message", func(r *router.Router) { router.OnBatch(r, "t", okBatch[*bus.Message]) }, "belongs to package bus"},
		{"request of *bus.Message", func(r *router.Router) {
			r.Handle("t", bus.Reply(func(context.Context, *bus.Message) (int, error) { return 0, nil }))
		}, "belongs to package bus"},
		{"EventType of a pointer", func(r *router.Router) { router.On(r, "t", ok[byPointer]) }, "EventType of router_test.byPointer has a pointer receiver"},
		{"EventKey of a pointer", func(r *router.Router) { router.OnBatch(r, "t", okBatch[keyByPointer]) }, "EventKey of router_test.keyByPointer has a pointer receiver"},
		{"pointers with methods of pointers", func(r *router.Router) { router.On(r, "t", ok[*byPointer]); router.On(r, "t", ok[*keyByPointer]) }, ""},
		{"generic", func(r *router.Router) { router.On(r, "t", ok[generic[int]]) }, "router_test.generic[int] is generic"},
		{"pointer to generic", func(r *router.Router) { router.On(r, "t", ok[*generic[int]]) }, "is generic"},
		{"generic with a name", func(r *router.Router) { router.On(r, "t", ok[defined]); router.On(r, "t", ok[named[int]]) }, ""},
		{"no type", func(r *router.Router) { router.On(r, "t", ok[map[string]any]) }, ""},
		{"nil function of messages", func(r *router.Router) { r.HandleFunc("t", nil) }, "the handler is nil"},
		{"nil function of events", func(r *router.Router) { router.On[plainEvent](r, "t", nil) }, "the function that handles router_test.plainEvent is nil"},
		{"nil function of batches", func(r *router.Router) { router.OnBatch[plainEvent](r, "t", nil) }, "is nil"},
		{"nil function of requests", func(r *router.Router) { r.Handle("t", bus.Reply[plainEvent, int](nil)) }, "is nil"},
		{"nil pointer", func(r *router.Router) { r.Handle("t", (*eachOf)(nil)) }, "the handler is nil"},
		{"nil middleware", func(r *router.Router) { r.HandleFunc("t", nop, router.Use(pass, nil)) }, "middleware 2 is nil"},
		{"Use after a handler", func(r *router.Router) { r.HandleFunc("t", nop); r.Use(pass) }, `Use comes after a handler of topic "t"`},
		{"Use after With", func(r *router.Router) { w := r.With(); r.Use(pass); w.HandleFunc("t", nop) }, "Use comes after With"},
		{"Use after Group", func(r *router.Router) { g := r.Group("other"); r.Use(pass); g.HandleFunc("t", nop) }, "Use comes after Group"},
		{"Use of a router of its own", func(r *router.Router) {
			r.HandleFunc("t", nop)
			w := r.With()
			w.Use(pass)
			w.HandleFunc("u", nop)
		}, ""},
		{"Skip of nothing", func(r *router.Router) { r.HandleFunc("t", nop, router.Skip()) }, "Skip names no type"},
		{"Skip of what is taken", func(r *router.Router) {
			router.On(r, "t", ok[plainEvent])
			router.On(r, "t", ok[defined], router.Skip("plainEvent"))
		}, `Skip names type "plainEvent", which handler g/t/plainEvent takes`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := router.New(b, "g")
			tc.add(r)
			err := r.Check()
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Check: %v\nwant %q", err, tc.want)
			}
		})
	}
}

// While the router runs, a late Use is the mistake of the handlers that come after it.
func TestLateUseWhileRunning(t *testing.T) {
	b := openBus(t)
	r := router.New(b, "g")
	r.HandleFunc("t", nop)
	run(t, r, "handler not added")
	r.Use(bus.Around(func(ctx context.Context, c bus.Call) error { return c.Next(ctx) }))
	if err := r.HandleFunc("u", nop).Ready(t.Context()); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "Use comes after") {
		t.Error(err)
	}
}
