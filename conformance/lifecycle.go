package conformance

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var lifecycleChecks = []check{
	{"lifecycle/receive-ends", lifecycleReceiveEnds},
	{"lifecycle/concurrent-close", lifecycleConcurrentClose},
	{"lifecycle/drain", lifecycleDrain},
	{"lifecycle/restart", lifecycleRestart},
	{"lifecycle/finished-beyond-unfinished", lifecycleBeyond},
	{"lifecycle/pause", lifecyclePause},
	{"lifecycle/no-goroutine-left", lifecycleLeaks},
}

// lifecycleReceiveEnds: a blocked Receive ends with its context, and goes on afterwards; Close ends
// it too.
func lifecycleReceiveEnds(e *env) {
	b := e.bus()
	topic := e.name("ends")
	s, _ := e.source(b, bus.Subscription{Topic: topic, Group: e.name("g")})
	ctx, cancel := context.WithTimeout(e.ctx, 100*time.Millisecond)
	defer cancel()
	dst := make([]bus.Delivery, 8)
	start := time.Now()
	if n, err := s.Receive(ctx, dst, 1<<20); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		e.errorf("receive under a context that ends: %d, %v", n, err)
	}
	if took := time.Since(start); took > 5*time.Second {
		e.errorf("receive ended %v after its context began", took)
	}
	e.publish(b, topic, &bus.Message{ID: "after"})
	if d := e.receive(s, 1); d[0].ID != "after" {
		e.errorf("received %q", d[0].ID)
	}
	over := make(chan error, 1)
	go func() {
		_, err := s.Receive(e.ctx, dst, 1<<20)
		over <- err
	}()
	e.pause(50*time.Millisecond, "so that Receive blocks")
	e.must(s.Close(e.ctx), "close")
	e.must(s.Close(e.ctx), "second close")
	select {
	case err := <-over:
		if !errors.Is(err, bus.ErrClosed) {
			e.errorf("a blocked receive at close: %v", err)
		}
	case <-e.ctx.Done():
		e.fatalf("close did not end a blocked receive")
	}
	if _, err := s.Receive(e.ctx, dst, 1<<20); !errors.Is(err, bus.ErrClosed) {
		e.errorf("receive after close: %v", err)
	}
}

// lifecycleConcurrentClose: sources and buses may be closed from everywhere at once.
func lifecycleConcurrentClose(e *env) {
	topic := e.name("close")
	b, err := e.open(e.ctx)
	e.must(err, "open")
	r := router.New(b, e.name("g"))
	r.HandleFunc(topic, func(context.Context, *bus.Message) error { return nil })
	run := e.run(r)
	e.publish(b, topic, e.ledger().make(100, 10)...)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { _ = run.Shutdown(e.ctx) }) // may say that the bus was closed under it
		wg.Go(func() { _ = b.Close() })           // each call returns the same: it is looked at below
	}
	wg.Wait()
	if err := b.Close(); err != nil {
		e.errorf("close: %v", err)
	}
	_ = run.stop() // the bus may have been closed under the router, which then says so
	e.cleanup = e.cleanup[:len(e.cleanup)-1]
}

// lifecycleDrain: routers that are stopped in the middle lose and repeat nothing.
func lifecycleDrain(e *env) {
	b := e.bus()
	topic, group := e.name("drain"), e.name("g")
	l := e.ledger()
	e.publish(b, topic, l.make(600, 20)...)
	for round := 1; l.distinct() < 600; round++ {
		r := router.New(b, group, router.Workers(8))
		r.HandleFunc(topic, l.handler(func(context.Context, *bus.Message) error {
			time.Sleep(time.Millisecond)
			return nil
		}))
		run := e.run(r)
		l.waitFor(func() int { return min(150*round, 600) })
		run.drain()
	}
	l.exact()
}

// lifecycleRestart: when all have left and come again, the group goes on where it was.
func lifecycleRestart(e *env) {
	topic, group := e.name("restart"), e.name("g")
	l := e.ledger()
	for round := range 3 {
		b, err := e.open(e.ctx)
		e.must(err, "open")
		if !e.capabilities(b).Durable {
			e.must(b.Close(), "close")
			e.lacking("messages do not outlive the process")
		}
		r := router.New(b, group)
		r.HandleFunc(topic, l.handler(nil))
		run := e.run(r)
		e.publish(b, topic, l.make(200, 10)...)
		l.waitFor(func() int { return 200*round + 100 })
		run.drain()
		e.must(b.Close(), "close")
	}
	b, err := e.open(e.ctx)
	e.must(err, "open")
	e.publish(b, topic, l.make(100, 10)...) // while no member consumes
	e.must(b.Close(), "close")
	b = e.bus()
	r := router.New(b, group)
	r.HandleFunc(topic, l.handler(nil))
	e.run(r)
	l.complete()
	l.exact()
}

// lifecycleBeyond: messages settled behind an unsettled message do not come again; the unsettled
// one does.
func lifecycleBeyond(e *env) {
	b := e.bus()
	if e.capabilities(b).Serial {
		e.lacking("a lane gives one message at a time")
	}
	topic, group := e.name("beyond"), e.name("g")
	sub := bus.Subscription{Topic: topic, Group: group}
	s, _ := e.source(b, sub)
	var msgs []*bus.Message
	for i := range 50 {
		msgs = append(msgs, &bus.Message{ID: "m" + string(rune('A'+i%26)) + string(rune('0'+i/26)), Key: "k"})
	}
	e.publish(b, topic, msgs...)
	var tokens []bus.Token
	want := map[string]bool{}
	for i, d := range e.receive(s, len(msgs)) {
		if i%7 == 3 {
			want[d.ID] = true
			continue
		}
		tokens = append(tokens, d.Token)
	}
	e.must(s.Settle(e.ctx, tokens), "settle")
	e.must(s.Close(e.ctx), "close")
	s, _ = e.source(b, sub)
	e.publish(b, topic, &bus.Message{ID: "last", Key: "k"})
	for {
		d := e.receive(s, 1)[0]
		if d.ID == "last" {
			break
		}
		if !want[d.ID] {
			e.errorf("message %s was settled, and came again", d.ID)
		}
		delete(want, d.ID)
	}
	if len(want) > 0 {
		e.errorf("%d unsettled messages did not come again", len(want))
	}
}

// lifecyclePause: a paused handler is called no more, and goes on without loss when it is resumed.
func lifecyclePause(e *env) {
	b := e.bus()
	topic := e.name("pause")
	l := e.ledger()
	r := router.New(b, e.name("g"))
	route := r.HandleFunc(topic, l.handler(nil))
	e.run(r)
	e.publish(b, topic, l.make(100, 10)...)
	l.complete()
	route.Pause()
	e.publish(b, topic, l.make(100, 10)...)
	e.pause(200*time.Millisecond, "calls would come now")
	if n := l.distinct(); n != 100 {
		e.errorf("%d messages were handled while paused", n-100)
	}
	if err := r.Health().Err(); err != nil {
		e.errorf("a paused handler is not healthy: %v", err)
	}
	route.Resume()
	l.complete()
	l.exact()
}

// lifecycleLeaks: when everything is closed, no goroutine of it is left.
func lifecycleLeaks(e *env) {
	before := goroutines()
	b, err := e.open(e.ctx)
	e.must(err, "open")
	topic := e.name("leaks")
	l := e.ledger()
	r := router.New(b, e.name("g"))
	r.HandleFunc(topic, l.handler(nil))
	run := e.run(r)
	e.publish(b, topic, l.make(100, 10)...)
	l.complete()
	_ = e.poisoned(b, e.name("g"))
	run.drain()
	e.must(b.Close(), "close")
	var left []string
	for deadline := time.Now().Add(10 * time.Second); ; e.pause(20*time.Millisecond, "goroutines ending") {
		left = left[:0]
		for id, stack := range goroutines() {
			if _, ok := before[id]; !ok && !strings.Contains(stack, "conformance.goroutines") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	e.errorf("%d goroutines are left, the first: %s", len(left), left[0])
}

// goroutines returns the stacks of all goroutines that run code of a driver, the router or a
// client, by their id.
func goroutines() map[string]string {
	buf := make([]byte, 4<<20)
	stacks := map[string]string{}
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		id, _, _ := strings.Cut(stack, " [")
		stacks[id] = stack
	}
	return stacks
}
