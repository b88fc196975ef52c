package conformance

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var orderChecks = []check{
	{"order/keys", orderKeys},
	{"order/keys-while-failing", orderWhileFailing},
	{"order/concurrency-beyond-lanes", orderConcurrency},
	{"order/slow-key-delays-nobody", orderSlowKey},
}

// orderKeys: each key's messages come one at a time and in publish order, over many keys and
// workers.
func orderKeys(e *env) {
	b := e.bus()
	topic := e.name("keys")
	l := e.ledger()
	r := router.New(b, e.name("g"), router.Workers(32))
	r.HandleFunc(topic, l.handler(nil))
	e.run(r)
	for range 20 {
		e.publish(b, topic, l.make(100, 50)...)
	}
	l.complete()
	l.exact()
}

// orderWhileFailing: the same while one call in ten fails and is retried.
func orderWhileFailing(e *env) {
	b := e.bus()
	topic := e.name("failing")
	l := e.ledger()
	r := router.New(b, e.name("g"), router.Workers(16), router.Policy{Retry: router.Exponential(time.Millisecond, 10*time.Millisecond, 50)})
	r.HandleFunc(topic, l.handler(func(context.Context, *bus.Message) error {
		if rand.IntN(10) == 0 {
			return errors.New("at random")
		}
		return nil
	}))
	e.run(r)
	for range 10 {
		e.publish(b, topic, l.make(100, 20)...)
	}
	l.complete()
	l.exact()
}

// orderConcurrency: as many calls run at once as there are workers, however few lanes the topic
// has.
func orderConcurrency(e *env) {
	b := e.bus()
	if e.capabilities(b).Serial {
		e.lacking("a lane gives one message at a time")
	}
	topic := e.name("concurrency")
	const workers = 100
	l := e.ledger()
	var once sync.Once
	all := make(chan struct{})
	r := router.New(b, e.name("g"), router.Workers(workers))
	r.HandleFunc(topic, l.handler(func(ctx context.Context, _ *bus.Message) error {
		l.mu.Lock()
		enough := l.now == workers
		l.mu.Unlock()
		if enough {
			once.Do(func() { close(all) })
		}
		select {
		case <-all:
		case <-ctx.Done():
		case <-e.ctx.Done():
		}
		return nil
	}))
	e.run(r)
	e.publish(b, topic, l.make(400, 300)...)
	select {
	case <-all:
	case <-time.After(20 * time.Second):
		l.mu.Lock()
		e.errorf("at most %d calls ran at once, with %d workers", l.most, workers)
		l.mu.Unlock()
		once.Do(func() { close(all) })
	}
	l.complete()
	l.exact()
}

// orderSlowKey: while a key's handler hangs, every other key goes on, and its own followers wait.
func orderSlowKey(e *env) {
	b := e.bus()
	if e.capabilities(b).Serial {
		e.lacking("a lane gives one message at a time")
	}
	topic := e.name("slow")
	l := e.ledger()
	gate := make(chan struct{})
	r := router.New(b, e.name("g"), router.Workers(4))
	r.HandleFunc(topic, l.handler(func(ctx context.Context, m *bus.Message) error {
		if m.Key == "key-0" {
			select {
			case <-gate:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}))
	e.run(r)
	e.publish(b, topic, l.make(1000, 50)...)
	l.waitFor(func() int { return len(l.published) - len(l.byKey["key-0"]) })
	l.mu.Lock()
	if n := len(l.order["key-0"]); n > 0 {
		e.errorf("%d messages of the key that hangs were handled", n)
	}
	l.mu.Unlock()
	close(gate)
	l.complete()
	l.exact()
}
