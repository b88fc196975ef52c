package conformance

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var typeChecks = []check{
	{"types/routing", typesRouting},
	{"types/strict", typesStrict},
}

type (
	typeA struct{ N int }
	typeB struct{ N int }
)

// typesRouting: handlers share a topic by type. A message without a handler is settled; a message
// without a type goes to the only typed handler.
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
	r := router.New(b, e.name("both"))
	router.On(r, topic, func(context.Context, typeA) error { note("A"); return nil })
	router.On(r, topic, func(context.Context, typeB) error { note("B"); return nil })
	only := r.Group(e.name("only"))
	router.On(only, topic, func(context.Context, typeA) error { note("only A"); return nil })
	run := e.run(r)
	msg := func(typ string) *bus.Message {
		return &bus.Message{Key: "k", Type: typ, ContentType: "application/json", Payload: []byte(`{}`)}
	}
	e.publish(b, topic, msg("typeA"), msg("typeB"), msg("typeC"), msg(""), msg("typeB"))
	e.wait("all typed messages", func() bool {
		mu.Lock()
		defer mu.Unlock()
		if len(got) < 5 {
			return false
		}
		for _, h := range r.Health().Routes {
			if h.InFlight > 0 || h.Skipped == 0 {
				return false
			}
		}
		return true
	})
	run.drain()
	slices.Sort(got)
	if want := []string{"A", "B", "B", "only A", "only A"}; !slices.Equal(got, want) {
		e.errorf("handled %q, want %q", got, want)
	}
}

// typesStrict: with Strict, a message without a handler goes to the poison queue.
func typesStrict(e *env) {
	b := e.bus()
	topic, group := e.name("strict"), e.name("g")
	r := router.New(b, group, router.Strict())
	router.On(r, topic, func(context.Context, typeA) error { return nil })
	e.run(r)
	e.publish(b, topic, &bus.Message{ID: "unknown", Type: "typeC"})
	e.wait("the poison entry", func() bool { return len(e.poisoned(b, group)) == 1 })
	if p := e.poisoned(b, group)[0]; p.Message.ID != "unknown" || p.Failure.Class != "unknown type" || time.Since(p.Time) > time.Hour {
		e.errorf("the entry is %+v", p)
	}
}
