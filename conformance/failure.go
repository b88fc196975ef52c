package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

var failureChecks = []check{
	{"failure/retry", failureRetry},
	{"failure/permanent", failurePermanent},
	{"failure/exhausted", failureExhausted},
	{"failure/undecodable", failureUndecodable},
	{"failure/batch", failureBatch},
	{"failure/emit", failureEmit},
	{"failure/healthy-at-shutdown", failureShutdown},
	{"failure/unavailable", failureUnavailable},
	{"failure/at-most-once", failureAtMostOnce},
	{"failure/deduplicate", failureDeduplicate},
	{"failure/correlation", failureCorrelation},
}

// poisoned reads a group's poison queue.
func (e *env) poisoned(b *bus.Bus, group string) []driver.PoisonEntry {
	s, err := driver.Of(b).Poison(e.ctx, group)
	e.must(err, "open the poison store")
	var entries []driver.PoisonEntry
	for entry, err := range s.List(e.ctx) {
		e.must(err, "list the poison store")
		entries = append(entries, entry)
	}
	return entries
}

// failureRetry: a failed message is tried again, not before its delay, with the attempt counted,
// and its key waits.
func failureRetry(e *env) {
	b := e.bus()
	topic := e.name("retry")
	const delay = 200 * time.Millisecond
	var mu sync.Mutex
	var at []time.Time
	var attempts []int
	var handled []string
	r := router.New(b, e.name("g"), router.Policy{Retry: router.Schedule{delay, delay}})
	r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if d := bus.DeliveryFrom(ctx); m.ID == "fails" {
			at, attempts = append(at, time.Now()), append(attempts, d.Attempt)
			if len(attempts) < 3 {
				return errors.New("not yet")
			}
		}
		handled = append(handled, m.ID)
		return nil
	})
	e.run(r)
	e.publish(b, topic, &bus.Message{ID: "fails", Key: "a"}, &bus.Message{ID: "behind", Key: "a"}, &bus.Message{ID: "other", Key: "b"})
	e.wait("the retried message", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(handled) == 3
	})
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(attempts, []int{1, 2, 3}) {
		e.errorf("the attempts were numbered %v", attempts)
	}
	for i := 1; i < len(at); i++ {
		if waited := at[i].Sub(at[i-1]); waited < delay {
			e.errorf("try %d came %v after the one before, want at least %v", i+1, waited, delay)
		}
	}
	if e.capabilities(b).Serial { // then the other key may wait, too
		handled = append([]string{"other"}, slices.DeleteFunc(handled, func(id string) bool { return id == "other" })...)
	}
	if !slices.Equal(handled, []string{"other", "fails", "behind"}) {
		e.errorf("handled in the order %v", handled)
	}
}

// failurePermanent: a permanent error puts the message into the poison queue at once, with the
// reason and byte for byte. Its key goes on.
func failurePermanent(e *env) {
	b := e.bus()
	topic, group := e.name("permanent"), e.name("g")
	next := make(chan string, 1)
	calls := 0
	r := router.New(b, group)
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		if m.ID == "bad" {
			calls++
			return bus.Permanent(errors.New("no such customer"))
		}
		next <- m.ID
		return nil
	}, router.Name("handler-1"))
	run := e.run(r)
	bad := &bus.Message{
		ID: "bad", Key: "\xffk", Type: "t", Source: "/s", Subject: "u", Time: time.Now().UTC(), ContentType: "x/y",
		Payload: []byte{0, 0xff}, Headers: bus.Headers{{Name: "a", Value: "\xfe"}, {Name: "b", Value: "2"}, {Name: "a", Value: "3"}},
	}
	e.publish(b, topic, bad, &bus.Message{ID: "next", Key: "\xffk"})
	select {
	case <-next:
	case <-e.ctx.Done():
		e.fatalf("the key did not go on after a poisoned message")
	}
	run.drain()
	entries := e.poisoned(b, group)
	if len(entries) != 1 {
		e.fatalf("%d entries in the poison queue, want 1", len(entries))
	}
	p := entries[0]
	same(e, bad, p.Message)
	f := p.Failure
	if p.Message.ID != "bad" || p.Topic != topic || p.Group != group || p.Handler != "handler-1" || p.Host == "" || time.Since(p.Time) > time.Hour ||
		f.Class != "permanent" || f.Text != "no such customer" || f.Attempts != 1 || time.Since(f.First) > time.Hour || time.Since(f.Last) > time.Hour {
		e.errorf("the entry is %+v", p)
	}
	if calls != 1 {
		e.errorf("a permanent error was tried %d times", calls)
	}
}

// failureExhausted: after the last try the message is in the poison queue and does not come again.
func failureExhausted(e *env) {
	b := e.bus()
	topic, group := e.name("exhausted"), e.name("g")
	var mu sync.Mutex
	calls := 0
	r := router.New(b, group, router.Policy{Retry: router.Schedule{time.Millisecond, time.Millisecond}})
	r.HandleFunc(topic, func(context.Context, *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		calls++
		return fmt.Errorf("try %d", calls)
	})
	run := e.run(r)
	e.publish(b, topic, &bus.Message{ID: "hopeless", Key: "k"})
	e.wait("the poison entry", func() bool { return len(e.poisoned(b, group)) == 1 })
	run.drain()
	p := e.poisoned(b, group)[0]
	if p.Failure.Class != "retries exhausted" || p.Failure.Attempts != 3 || p.Failure.Text != "try 3" || calls != 3 {
		e.errorf("%d calls; the entry is %+v", calls, p.Failure)
	}
}

// failureUndecodable: an undecodable message goes to the poison queue, and the flow goes on.
func failureUndecodable(e *env) {
	type order struct{ N int }
	b := e.bus()
	topic, group := e.name("undecodable"), e.name("g")
	got := make(chan int, 1)
	r := router.New(b, group)
	router.On(r, topic, func(_ context.Context, o order) error { got <- o.N; return nil })
	run := e.run(r)
	e.publish(b, topic,
		&bus.Message{ID: "broken", Key: "k", Type: "order", ContentType: "application/json", Payload: []byte(`{"N":`)},
		&bus.Message{ID: "strange", Key: "k", Type: "order", ContentType: "image/png", Payload: []byte{1}},
		&bus.Message{ID: "envelope", Key: "k", ContentType: "application/cloudevents+json", Payload: []byte("?")},
		&bus.Message{ID: "good", Key: "k", Type: "order", ContentType: "application/json", Payload: []byte(`{"N":7}`)})
	select {
	case n := <-got:
		if n != 7 {
			e.errorf("decoded %d, want 7", n)
		}
	case <-e.ctx.Done():
		e.fatalf("records that cannot be decoded stopped the flow")
	}
	run.drain()
	var ids []string
	for _, p := range e.poisoned(b, group) {
		ids = append(ids, p.Message.ID)
		if p.Failure.Class != "undecodable" {
			e.errorf("message %q: class %q", p.Message.ID, p.Failure.Class)
		}
	}
	slices.Sort(ids)
	if !slices.Equal(ids, []string{"broken", "envelope", "strange"}) {
		e.errorf("poisoned are %q", ids)
	}
}

// failureBatch: in a batch, each message has its own outcome.
func failureBatch(e *env) {
	b := e.bus()
	topic, group := e.name("batch"), e.name("g")
	l := e.ledger()
	var mu sync.Mutex
	tries := map[string]int{}
	r := router.New(b, group, router.Policy{Retry: router.Schedule{time.Millisecond, time.Millisecond, time.Millisecond}})
	r.Handle(topic, batchFunc(func(_ context.Context, ms []*bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		errs := make([]error, len(ms))
		keys := map[string]bool{}
		for i, m := range ms {
			if keys[m.Key] {
				e.errorf("a batch holds two messages of key %s", m.Key)
			}
			keys[m.Key] = true
			tries[m.ID]++
			l.enter(m)
			if tries[m.ID] == 1 && m.Key == "key-3" {
				errs[i] = errors.New("at first")
			}
			if l.leave(m); errs[i] == nil {
				l.succeed(m)
			}
		}
		return bus.PerMessage(errs)
	}), router.Fill(20, 5*time.Millisecond))
	e.run(r)
	for range 5 {
		e.publish(b, topic, l.make(100, 10)...)
	}
	l.complete()
	l.exact()
	mu.Lock()
	defer mu.Unlock()
	for id, n := range tries {
		if n > 2 {
			e.errorf("message %s was tried %d times", id, n)
		}
	}
}

// batchFunc is a batch handler of raw messages.
type batchFunc func(ctx context.Context, ms []*bus.Message) error

// Handle implements bus.Handler.
func (f batchFunc) Handle(ctx context.Context, m *bus.Message) error {
	return bus.Outcomes(f(ctx, []*bus.Message{m}), 1)[0]
}

// HandleBatch implements bus.BatchHandler.
func (f batchFunc) HandleBatch(ctx context.Context, ms []*bus.Message) error { return f(ctx, ms) }

// failureEmit: a handler's emitted messages are published once it succeeded, and not if it failed.
func failureEmit(e *env) {
	b := e.bus()
	in, out := e.name("in"), e.name("out")
	l := e.ledger()
	var mu sync.Mutex
	tries := map[string]int{}
	got := map[string]int{}
	r := router.New(b, e.name("g"), router.Policy{Retry: router.Schedule{time.Millisecond}})
	r.HandleFunc(in, l.handler(func(ctx context.Context, m *bus.Message) error {
		mu.Lock()
		tries[m.ID]++
		try := tries[m.ID]
		mu.Unlock()
		if err := bus.Emit(ctx, out, &bus.Message{ID: fmt.Sprint(m.ID, "/", try)}, bus.WithCause(m)); err != nil {
			return err
		}
		if try == 1 && m.Key == "key-1" {
			return errors.New("fails after it emitted")
		}
		return nil
	}))
	r.HandleFunc(out, func(_ context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		got[m.ID]++
		return nil
	})
	e.run(r)
	msgs := l.make(100, 3)
	e.publish(b, in, msgs...)
	l.complete()
	e.wait("the emitted messages", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) >= len(msgs)
	})
	mu.Lock()
	defer mu.Unlock()
	for _, m := range msgs {
		want := fmt.Sprint(m.ID, "/", tries[m.ID])
		if got[want] != 1 || m.Key == "key-1" && got[m.ID+"/1"] != 0 {
			e.errorf("message %s of %s: outputs %v", m.ID, m.Key, got)
			return
		}
	}
}

// failureShutdown: a drain that cuts handlers short poisons nothing, and their messages come again.
func failureShutdown(e *env) {
	b := e.bus()
	topic, group := e.name("shutdown"), e.name("g")
	l := e.ledger()
	begun := make(chan struct{}, 100)
	r := router.New(b, group, router.DrainTimeout(50*time.Millisecond), router.Policy{Retry: router.Never})
	r.HandleFunc(topic, func(ctx context.Context, _ *bus.Message) error {
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	run := e.run(r)
	e.publish(b, topic, l.make(10, 0)...)
	select {
	case <-begun:
	case <-e.ctx.Done():
		e.fatalf("no message came")
	}
	e.must(run.stop(), "a drain whose handlers heed that their context has ended")
	e.cleanup = e.cleanup[:len(e.cleanup)-1] // it is stopped
	if n := len(e.poisoned(b, group)); n > 0 {
		e.errorf("the shutdown poisoned %d healthy messages", n)
	}
	r = router.New(b, group)
	r.HandleFunc(topic, l.handler(nil))
	e.run(r)
	l.complete()
	l.exact()
}
