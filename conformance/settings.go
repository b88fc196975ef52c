package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/router"
)

// failureUnavailable: while a handler's resource is not available, no handler is called. Then one
// call finds out, and all go on. Nothing is lost, and no try is counted.
func failureUnavailable(e *env) {
	const away = 5 * time.Second
	b := e.bus()
	topic, group := e.name("unavailable"), e.name("g")
	l := e.ledger()
	var mu sync.Mutex
	var since time.Time
	early, probing, together := 0, 0, 0
	r := router.New(b, group, router.Workers(8), router.Policy{Retry: router.Never})
	r.HandleFunc(topic, l.handler(func(ctx context.Context, _ *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case since.IsZero():
			since = time.Now()
			return bus.Unavailable(errors.New("the database is away"), away)
		case time.Since(since) < 100*time.Millisecond: // begun before the first had ended
			return bus.Unavailable(errors.New("the database is away"), away)
		case time.Since(since) < away:
			early++
		}
		if d := bus.DeliveryFrom(ctx); d.Attempt != 1 {
			e.errorf("a pause was counted: try %d", d.Attempt)
		}
		if probing < 1 {
			probing++
			mu.Unlock()
			e.pause(100*time.Millisecond, "the probe")
			mu.Lock()
			probing++
		} else if probing == 1 {
			together++
		}
		return nil
	}))
	e.run(r)
	for range 10 {
		e.publish(b, topic, l.make(50, 20)...)
	}
	l.complete()
	l.exact()
	if early > 0 {
		e.errorf("%d handlers were called during the pause", early)
	}
	if together > 0 {
		e.errorf("%d handlers were called beside the one that was to find out", together)
	}
	if n := len(e.poisoned(b, group)); n > 0 {
		e.errorf("%d messages were poisoned", n)
	}
}

// failureAtMostOnce: a begun message is not handled again when it is cut short; a message not begun
// is not lost.
func failureAtMostOnce(e *env) {
	b := e.bus()
	topic, group := e.name("at-most-once"), e.name("g")
	l := e.ledger()
	var mu sync.Mutex
	begun := map[string]int{}
	note := func(m *bus.Message) {
		mu.Lock()
		defer mu.Unlock()
		begun[m.ID]++
	}
	first := make(chan struct{}, 1000)
	r := router.New(b, group, router.Guarantee(router.AtMostOnce), router.Workers(4), router.DrainTimeout(50*time.Millisecond))
	r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
		note(m)
		first <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	run := e.run(r)
	msgs := l.make(200, 50)
	e.publish(b, topic, msgs...)
	select {
	case <-first:
	case <-e.ctx.Done():
		e.fatalf("no message came")
	}
	_ = run.stop() // it cuts handlers short, and may say so
	e.cleanup = e.cleanup[:len(e.cleanup)-1]
	r = router.New(b, group, router.Guarantee(router.AtMostOnce))
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error { note(m); return nil })
	e.run(r)
	e.wait("what was not begun", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(begun) == len(msgs)
	})
	mu.Lock()
	defer mu.Unlock()
	for id, n := range begun {
		if n != 1 {
			e.errorf("message %s was handled %d times", id, n)
		}
	}
}

// failureDeduplicate: a message is remembered when it has succeeded and not before. So a failure is
// tried again and a repeat is not handled.
func failureDeduplicate(e *env) {
	b := e.bus()
	topic := e.name("dedup")
	var mu sync.Mutex
	var calls []string
	r := router.New(b, e.name("g"), router.Policy{Retry: router.Schedule{10 * time.Millisecond, 10 * time.Millisecond}},
		router.Use(middleware.Deduplicate(&middleware.DedupMemory{}, nil)))
	r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, m.ID)
		if m.ID == "fails" && bus.DeliveryFrom(ctx).Attempt == 1 {
			return errors.New("at first")
		}
		return nil
	})
	e.run(r)
	for _, id := range []string{"fails", "fails", "good", "good", "fails", "end"} {
		e.publish(b, topic, &bus.Message{ID: id, Key: "k"})
	}
	e.wait("the last message", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(calls, "end")
	})
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"fails", "fails", "good", "end"}; !slices.Equal(calls, want) {
		e.errorf("the handler was called for %v, want %v", calls, want)
	}
}

// failureCorrelation: the messages that handlers publish over three hops belong together, and name
// their causes.
func failureCorrelation(e *env) {
	b := e.bus()
	topic := func(hop int) string { return e.name(fmt.Sprint("hop-", hop)) }
	came := make(chan bus.Message, 10)
	r := router.New(b, e.name("g"), router.Use(middleware.Correlation()))
	for hop := range 3 {
		r.HandleFunc(topic(hop), func(ctx context.Context, m *bus.Message) error {
			came <- *m
			if hop == 2 {
				return nil
			}
			return bus.Emit(ctx, topic(hop+1), &bus.Message{ID: m.ID + "+", Key: m.Key})
		})
	}
	e.run(r)
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	e.publish(b, topic(0), &bus.Message{ID: "0", Key: "k", Headers: bus.Headers{{Name: "traceparent", Value: trace}}})
	for _, want := range []struct{ id, correlation, cause string }{{"0", "", ""}, {"0+", "0", "0"}, {"0++", "0", "0+"}} {
		select {
		case m := <-came:
			if m.ID != want.id || m.Headers.Get(bus.HeaderCorrelationID) != want.correlation || m.Headers.Get(bus.HeaderCausationID) != want.cause || m.Headers.Get("traceparent") != trace {
				e.errorf("%s came with the headers %v", m.ID, m.Headers)
			}
		case <-e.ctx.Done():
			e.fatalf("%s did not come", want.id)
		}
	}
}
