package conformance

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

var publishChecks = []check{
	{"publish/errors-aligned", publishAligned},
	{"publish/cancelled", publishCancelled},
	{"publish/closed", publishClosed},
	{"publish/close-meanwhile", publishCloseMeanwhile},
	{"publish/concurrent", publishConcurrent},
}

// publishAligned: messages that cannot be published fail alone, each at its index, and the others
// arrive.
func publishAligned(e *env) {
	b := e.bus()
	bad := &bus.Message{ID: "bad", Headers: bus.Headers{{Name: ""}}}
	want := bus.ErrInvalid
	if most := e.capabilities(b).MaxMessage; most > 0 && most <= 64<<20 {
		bad, want = &bus.Message{ID: "bad", Payload: make([]byte, most)}, bus.ErrTooLarge
	}
	topic := e.name("aligned")
	s, _ := e.source(b, bus.Subscription{Topic: topic, Group: e.name("g")})
	err := b.PublishMessages(e.ctx, topic, &bus.Message{ID: "a", Key: "k"}, bad, &bus.Message{ID: "c", Key: "k"})
	pe, ok := errors.AsType[*bus.PublishError](err)
	if !ok || len(pe.Errs) != 3 || pe.Errs[0] != nil || pe.Errs[2] != nil || !errors.Is(pe.Errs[1], want) || !bus.IsDefinite(pe.Errs[1]) {
		e.fatalf("the error is %v, want one of 3 with %v at index 1", err, want)
	}
	e.publish(b, topic, &bus.Message{ID: "d", Key: "k"})
	for i, d := range e.receive(s, 3) {
		if want := []string{"a", "c", "d"}[i]; d.ID != want {
			e.errorf("message %d is %q, want %q", i, d.ID, want)
		}
	}
}

// publishCancelled: a context that has ended publishes nothing, and says so.
func publishCancelled(e *env) {
	b := e.bus()
	topic := e.name("cancelled")
	s, _ := e.source(b, bus.Subscription{Topic: topic, Group: e.name("g")})
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	if err := b.PublishMessages(ctx, topic, &bus.Message{ID: "never"}); !errors.Is(err, context.Canceled) || !bus.IsDefinite(err) {
		e.errorf("publish under an ended context: %v, definite: %v", err, bus.IsDefinite(err))
	}
	if err := b.Driver().Publish(ctx, topic, []*bus.Message{{ID: "perhaps", Time: time.Now(), Source: "/s"}}); err == nil {
		e.errorf("the driver published under an ended context")
	} else if !bus.IsDefinite(err) {
		return // then it may have come or not
	}
	e.publish(b, topic, &bus.Message{ID: "later"})
	if d := e.receive(s, 1); d[0].ID != "later" {
		e.errorf("%q was published although its context had ended", d[0].ID)
	}
}

// publishClosed: after Close everything says so.
func publishClosed(e *env) {
	b, err := e.open(e.ctx)
	e.must(err, "open")
	d := driver.Of(b)
	e.must(b.Close(), "close")
	e.must(b.Close(), "second close")
	topic := e.name("closed")
	if err := b.Publish(e.ctx, topic, &bus.Message{}); !errors.Is(err, bus.ErrClosed) || !bus.IsDefinite(err) || bus.IsRetryable(err) {
		e.errorf("publish after close: %v", err)
	}
	err = d.Publish(e.ctx, topic, []*bus.Message{{ID: "x", Time: time.Now(), Source: "/s"}})
	if pe, ok := errors.AsType[*bus.PublishError](err); !ok || len(pe.Errs) != 1 || !errors.Is(err, bus.ErrClosed) || !bus.IsDefinite(err) {
		e.errorf("the driver's publish after close: %v", err)
	}
	if _, err := d.Subscribe(e.ctx, bus.Subscription{Topic: topic, Group: e.name("g"), InFlight: 1, Bytes: 1}, &lanes{}); !errors.Is(err, bus.ErrClosed) {
		e.errorf("subscribe after close: %v", err)
	}
	if err := d.Close(e.ctx); err != nil {
		e.errorf("second close of the driver: %v", err)
	}
}

// publishCloseMeanwhile: a Close while others publish leaves no doubt. A message reported as
// published arrives, and a message reported as definitely not published does not.
func publishCloseMeanwhile(e *env) {
	keep := e.bus() // so that a bus in memory survives
	topic, group := e.name("meanwhile"), e.name("g")
	l := e.ledger()
	b, err := e.open(e.ctx)
	e.must(err, "open")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10_000 {
				m := l.make(1, 0)[0]
				err := b.PublishMessages(e.ctx, topic, m)
				if err == nil {
					continue
				}
				if bus.IsDefinite(err) {
					l.unpublish(m.ID)
				} else {
					l.mu.Lock()
					l.calls[m.ID] = 1 // it may have come or not
					l.mu.Unlock()
				}
				if errors.Is(err, bus.ErrClosed) {
					return
				}
			}
		})
	}
	e.pause(50*time.Millisecond, "publishing")
	e.must(b.Close(), "close while others publish")
	wg.Wait()
	r := router.New(keep, group)
	r.HandleFunc(topic, l.handler(nil))
	e.run(r)
	l.complete()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.strange) > 0 {
		e.errorf("%d messages were published although the error said that they were definitely not: %s", len(l.strange), first(l.strange))
	}
}

// publishConcurrent: many publishers at once, single messages and batches; everything arrives once.
func publishConcurrent(e *env) {
	b := e.bus()
	topic, group := e.name("concurrent"), e.name("g")
	l := e.ledger()
	r := router.New(b, group)
	r.HandleFunc(topic, l.handler(nil))
	e.run(r)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for range 10 {
				msgs := l.make(1+i%7, 0)
				for _, m := range msgs {
					m.Payload = bytes.Repeat([]byte{'x'}, 100*i)
				}
				if err := b.PublishMessages(e.ctx, topic, msgs...); err != nil {
					e.errorf("publish: %v", err)
				}
			}
		})
	}
	wg.Wait()
	l.complete()
	l.exact()
}
