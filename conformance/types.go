package conformance

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

var typeChecks = []check{
	{"types/routing", typesRouting},
	{"types/unknown", typesUnknown},
	{"types/rolling-update", typesRollingUpdate},
	{"types/skip", typesSkip},
	{"types/skip-unknown", typesSkipUnknown},
}

type (
	typeA struct{ N int }
	typeB struct{ N int }
)

// typed is a message of a type, with a payload that typed handlers can decode.
func typed(id, key, typ string) *bus.Message {
	return &bus.Message{ID: id, Key: key, Type: typ, ContentType: "application/json", Payload: []byte(`{}`)}
}

// handledIDs notes the ids of handled messages, in order.
type handledIDs struct {
	mu  sync.Mutex
	ids []string
}

func (h *handledIDs) handle(ctx context.Context, _ typeA) error {
	h.note(bus.DeliveryFrom(ctx).Message)
	return nil
}

func (h *handledIDs) note(m *bus.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ids = append(h.ids, m.ID)
}

// all returns the ids so far.
func (h *handledIDs) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ids)
}

// distinct returns how many different ids begin with a prefix.
func (h *handledIDs) distinct(prefix string) int {
	ids := slices.DeleteFunc(h.all(), func(id string) bool { return !strings.HasPrefix(id, prefix) })
	slices.Sort(ids)
	return len(slices.Compact(ids))
}

// rests says whether nothing of r is in flight.
func rests(r *router.Router) bool {
	return !slices.ContainsFunc(r.Health().Routes, func(h router.RouteHealth) bool { return h.InFlight > 0 })
}

// typesRouting: handlers share a topic by type. A message without a type goes to the only typed
// handler.
func typesRouting(e *env) {
	b := e.bus()
	topic := e.name("types")
	var mu sync.Mutex
	var got []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, s)
	}
	r := router.New(b, e.name("both"), router.Skip("typeC", ""))
	router.On(r, topic, func(context.Context, typeA) error { note("A"); return nil })
	router.On(r, topic, func(context.Context, typeB) error { note("B"); return nil })
	only := router.New(b, e.name("only"), router.Skip("typeB", "typeC"))
	router.On(only, topic, func(context.Context, typeA) error { note("only A"); return nil })
	runs := []*running{e.run(r), e.run(only)}
	e.publish(b, topic, typed("0", "k", "typeA"), typed("1", "k", "typeB"), typed("2", "k", "typeC"), typed("3", "k", ""), typed("4", "k", "typeB"))
	e.wait("all typed messages", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) >= 5 && r.Health().Routes[0].Skipped == 2 && rests(r) && rests(only)
	})
	for _, run := range runs {
		run.drain()
	}
	slices.Sort(got)
	if want := []string{"A", "B", "B", "only A", "only A"}; !slices.Equal(got, want) {
		e.errorf("handled %q, want %q", got, want)
	}
}

// typesUnknown: a message of a type that no handler takes goes to the poison queue; the others of
// its key are handled in order.
func typesUnknown(e *env) {
	b := e.bus()
	topic, group := e.name("unknown"), e.name("g")
	var handled handledIDs
	r := router.New(b, group)
	router.On(r, topic, handled.handle)
	e.run(r)
	e.publish(b, topic, typed("0", "k", "typeA"), typed("unknown", "k", "typeC"), typed("1", "k", "typeA"))
	e.wait("the poison entry, and the messages around it", func() bool {
		return len(e.poisoned(b, group)) == 1 && len(handled.all()) >= 2 && rests(r)
	})
	p := e.poisoned(b, group)[0]
	if p.Message.ID != "unknown" || p.Message.Type != "typeC" || string(p.Message.Payload) != "{}" || p.Failure.Class != "unknown type" {
		e.errorf("the entry is %+v", p)
	}
	if ids := handled.all(); !slices.Equal(ids, []string{"0", "1"}) {
		e.errorf("handled %v", ids)
	}
	if h := r.Health().Routes[0]; h.Unknown != 1 || h.Skipped != 0 {
		e.errorf("health has %d unknown and %d skipped", h.Unknown, h.Skipped)
	}
}

// typesRollingUpdate: while publishers use a new type already, an old and a new version of a group
// share a topic. What the old version does not know is handled by the new one after a replay:
// nothing is lost.
func typesRollingUpdate(e *env) {
	const n = 60
	b := e.bus()
	topic, group := e.name("rolling"), e.name("g")
	q := e.replaying(b, group)
	var byOld, byNew handledIDs
	old := router.New(b, group)
	router.On(old, topic, byOld.handle)
	oldRun := e.run(old)
	publish := func(from, to int) {
		for i := from; i < to; i++ {
			key := fmt.Sprint("k", i%20)
			e.publish(b, topic, typed(fmt.Sprint("a", i), key, "typeA"), typed(fmt.Sprint("b", i), key, "typeB"))
		}
	}
	settled := func() int {
		return byOld.distinct("a") + byNew.distinct("a") + byNew.distinct("b") + len(e.poisoned(b, group))
	}
	publish(0, n/3)
	e.wait("the messages that the old version is given", func() bool { return settled() >= 2*n/3 && rests(old) })
	fresh := router.New(e.bus(), group)
	router.On(fresh, topic, byNew.handle)
	router.On(fresh, topic, func(ctx context.Context, _ typeB) error {
		byNew.note(bus.DeliveryFrom(ctx).Message)
		return nil
	})
	e.run(fresh)
	publish(n/3, n)
	e.wait("the messages that both versions are given", func() bool { return settled() >= 2*n && rests(old) && rests(fresh) })
	oldRun.drain()
	if k := len(e.poisoned(b, group)); k < n/3 {
		e.errorf("%d messages are in the poison queue: want at least the %d that only the old version could be given", k, n/3)
	}
	_, err := q.Replay(e.ctx, poison.Filter{Class: "unknown type"}, poison.Options{})
	e.must(err, "replay")
	e.wait("all messages of the new type", func() bool { return byNew.distinct("b") == n && rests(fresh) })
	if k := byOld.distinct("b"); k > 0 {
		e.errorf("the old version has handled %d messages of a type that it does not take", k)
	}
	if es := e.poisoned(b, group); len(es) > 0 {
		e.errorf("%d messages are in the poison queue after the replay", len(es))
	}
}

// skips is a hook, and a log, that note which messages were skipped, and of which types the log has
// told.
type skips struct {
	skipped handledIDs

	mu    sync.Mutex
	types []string
}

// Skipped implements router.SkippedHook.
func (s *skips) Skipped(_ context.Context, d bus.Delivery) { s.skipped.note(d.Message) }

// Enabled implements slog.Handler.
func (s *skips) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs and WithGroup implement slog.Handler.
func (s *skips) WithAttrs([]slog.Attr) slog.Handler { return s }

// WithGroup implements slog.Handler.
func (s *skips) WithGroup(string) slog.Handler { return s }

// Handle implements slog.Handler.
func (s *skips) Handle(_ context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return nil
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "type" {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.types = append(s.types, a.Value.String())
		}
		return true
	})
	return nil
}

// warnings returns the types of which the log has warned.
func (s *skips) warnings() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.types))
}

// typesSkip: what Skip names is settled for good, counted and told to the hook.
func typesSkip(e *env) {
	const n = 30
	b := e.bus()
	topic, group := e.name("skip"), e.name("g")
	member := func(b *bus.Bus) (*router.Router, *running, *skips, *handledIDs) {
		s, handled := &skips{}, &handledIDs{}
		r := router.New(b, group, router.Skip("typeC"), router.Hooks(s), router.Logger(slog.New(s)))
		router.On(r, topic, handled.handle)
		return r, e.run(r), s, handled
	}
	r, run, s, handled := member(b)
	for i := range n {
		key := fmt.Sprint("k", i%10)
		e.publish(b, topic, typed(fmt.Sprint("a", i), key, "typeA"), typed(fmt.Sprint("c", i), key, "typeC"))
	}
	e.wait("all messages", func() bool { return handled.distinct("a") == n && s.skipped.distinct("c") == n && rests(r) })
	h := r.Health().Routes[0]
	if told := len(s.skipped.all()); h.Skipped != uint64(told) || h.SkippedTypes["typeC"] != h.Skipped || h.Unknown != 0 {
		e.errorf("health has %d skipped (%v), %d unknown; the hook was told of %d", h.Skipped, h.SkippedTypes, h.Unknown, told)
	}
	if w := s.warnings(); len(w) > 0 {
		e.errorf("the log warns of %q, which Skip names", w)
	}
	run.drain()
	_, run, s, handled = member(e.bus())
	for i := range 10 { // behind what could come again
		e.publish(b, topic, typed(fmt.Sprint("last", i), fmt.Sprint("k", i), "typeA"))
	}
	e.wait("the last messages", func() bool { return handled.distinct("last") == 10 })
	run.drain()
	if k := s.skipped.distinct("c"); k > 0 {
		e.errorf("%d skipped messages came again", k)
	}
	if es := e.poisoned(b, group); len(es) > 0 {
		e.errorf("%d messages are in the poison queue", len(es))
	}
}

// typesSkipUnknown: with SkipUnknown every type that no handler takes is skipped and counted by
// type, and the log warns of each once.
func typesSkipUnknown(e *env) {
	const n = 10
	b := e.bus()
	topic, group := e.name("skip-unknown"), e.name("g")
	var handled handledIDs
	s := &skips{}
	r := router.New(b, group, router.SkipUnknown(), router.Hooks(s), router.Logger(slog.New(s)))
	router.On(r, topic, handled.handle)
	run := e.run(r)
	for i := range n {
		key := fmt.Sprint("k", i)
		e.publish(b, topic, typed(fmt.Sprint("a", i), key, "typeA"), typed(fmt.Sprint("c", i), key, "typeC"), typed(fmt.Sprint("d", i), key, "typeD"))
	}
	e.wait("all messages", func() bool {
		return handled.distinct("a") == n && s.skipped.distinct("c") == n && s.skipped.distinct("d") == n && rests(r)
	})
	run.drain()
	h := r.Health().Routes[0]
	if h.SkippedTypes["typeC"] < n || h.SkippedTypes["typeD"] < n || len(h.SkippedTypes) != 2 || h.Skipped != h.SkippedTypes["typeC"]+h.SkippedTypes["typeD"] {
		e.errorf("health has %d skipped, by type %v", h.Skipped, h.SkippedTypes)
	}
	if w := s.warnings(); !slices.Equal(w, []string{"typeC", "typeD"}) {
		e.errorf("the log warns of the types %q: want each once", w)
	}
	if es := e.poisoned(b, group); len(es) > 0 {
		e.errorf("%d messages are in the poison queue", len(es))
	}
}
