package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var delayChecks = []check{
	{"delay/retry", delayRetry},
	{"delay/many-keys", delayManyKeys},
	{"delay/publish", delayPublish},
	{"delay/cancel", delayCancel},
}

// parks ends the check if the driver cannot park.
func (e *env) parks(b *bus.Bus) {
	if !e.capabilities(b).Parking {
		e.lacking("messages cannot be parked at the broker")
	}
}

// delayRetry: a long delay blocks its key alone, and ends neither early nor late, also when the
// member changes meanwhile. The try is counted.
func delayRetry(e *env) {
	b := e.bus()
	e.parks(b)
	topic, group := e.name("delay"), e.name("g")
	const wait = 3 * time.Second
	var mu sync.Mutex
	var failed, retried time.Time
	var ids []string
	others := 0
	handler := func(ctx context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if m.Key != "slow" {
			others++
			return nil
		}
		d := bus.DeliveryFrom(ctx)
		if m.ID == "0" && d.Attempt == 1 {
			failed = time.Now()
			return errors.New("not yet")
		}
		if m.ID == "0" {
			retried = time.Now()
			if d.Attempt != 2 || d.Failure == nil || d.Failure.Text != "not yet" {
				e.errorf("at the second try the handler is told of try %d, failure %+v", d.Attempt, d.Failure)
			}
		}
		ids = append(ids, m.ID)
		return nil
	}
	start := func(b *bus.Bus) *running {
		r := router.New(b, group, router.InFlight(50, 1<<20), router.Policy{Retry: router.Schedule{wait}})
		r.HandleFunc(topic, handler)
		return e.run(r)
	}
	first := start(b)
	var msgs []*bus.Message
	for i := range 100 {
		msgs = append(msgs, &bus.Message{ID: fmt.Sprint(i), Key: "slow"})
	}
	for i := range 400 {
		msgs = append(msgs, &bus.Message{ID: fmt.Sprint("o", i), Key: fmt.Sprint(i % 20)})
	}
	e.publish(b, topic, msgs...)
	e.wait("400 messages of other keys to pass one that waits", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return others == 400
	})
	first.drain()
	second := e.bus()
	if !e.capabilities(b).Durable {
		second = b
	}
	start(second)
	e.wait("the message that waits and its followers", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(ids) >= 100
	})
	mu.Lock()
	defer mu.Unlock()
	took := retried.Sub(failed)
	if took < wait || took > wait+wait/10+time.Second {
		e.errorf("a delay of %v lasted %v", wait, took)
	}
	for i, id := range ids {
		if id != fmt.Sprint(i) {
			e.errorf("the key's order is %v", ids)
			break
		}
	}
}

// delayManyKeys: ten thousand keys wait at once. They come when they are due, with their followers,
// also when the member changes meanwhile.
func delayManyKeys(e *env) {
	const keys, wait = 10_000, 5 * time.Second
	b := e.bus()
	e.parks(b)
	topic, group := e.name("many"), e.name("g")
	l := e.ledger()
	var mu sync.Mutex
	failed := make(map[string]time.Time, keys)
	var early int
	start := func(b *bus.Bus) *running {
		r := router.New(b, group, router.InFlight(1000, 64<<20))
		r.HandleFunc(topic, l.handler(func(_ context.Context, m *bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			at, ok := failed[m.Key]
			if !ok {
				failed[m.Key] = time.Now()
				return bus.RetryAfter(errors.New("later"), wait)
			}
			if time.Since(at) < wait {
				early++
			}
			return nil
		}))
		return e.run(r)
	}
	first := start(b)
	for range 2 { // each key's first, then those behind
		for i := 0; i < keys; i += 1000 {
			e.publish(b, topic, l.each(i, i+1000)...)
		}
	}
	e.wait("ten thousand keys to fail", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(failed) == keys
	})
	first.drain()
	second := e.bus()
	if !e.capabilities(b).Durable {
		second = b
	}
	start(second)
	l.complete()
	l.exact()
	if early > 0 {
		e.errorf("%d messages came before they were due", early)
	}
}

// delayPublish: delayed messages come to every group, in the order of their due times and not
// before. Their keys do not wait for them.
func delayPublish(e *env) {
	b := e.bus()
	e.parks(b)
	topic := e.name("delayed")
	delays := []time.Duration{3 * time.Second, 1500 * time.Millisecond, 2250 * time.Millisecond}
	type arrival struct {
		id string
		at time.Time
	}
	var mu sync.Mutex
	came := map[string][]arrival{}
	groups := []string{e.name("one"), e.name("two")}
	for _, group := range groups {
		r := router.New(b, group)
		r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			came[group] = append(came[group], arrival{m.ID, time.Now()})
			return nil
		})
		e.run(r)
	}
	sent := map[string]time.Time{}
	for i, d := range delays {
		id := fmt.Sprint("late-", i)
		sent[id] = time.Now()
		e.must(b.Publish(e.ctx, topic, "x", bus.WithID(id), bus.WithKey("k"), bus.WithDelay(d)), "publish")
	}
	e.publish(b, topic, &bus.Message{ID: "now", Key: "k"})
	e.wait("all deliveries", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(came[groups[0]])+len(came[groups[1]]) == 2*len(delays)+2
	})
	mu.Lock()
	defer mu.Unlock()
	for _, group := range groups {
		var ids []string
		for _, a := range came[group] {
			ids = append(ids, a.id)
			var i int
			if _, err := fmt.Sscanf(a.id, "late-%d", &i); err != nil {
				continue
			}
			if d := a.at.Sub(sent[a.id]); d < delays[i] || d > delays[i]+time.Second {
				e.errorf("a delay of %v lasted %v", delays[i], d)
			}
		}
		if want := []string{"now", "late-1", "late-2", "late-0"}; !slices.Equal(ids, want) {
			e.errorf("a group was given %v, want %v", ids, want)
		}
	}
}
