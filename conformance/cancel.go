package conformance

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// delayCancel: a cancelled delayed message comes to no group, also when the member changes before
// or after the cancellation. The others of its key are not touched; a cancellation of a delivered
// message does nothing.
func delayCancel(e *env) {
	const (
		keys = 20
		due  = 6 * time.Second // by then another member must be there
	)
	b := e.bus()
	e.parks(b)
	topic := e.name("cancel")
	groups := []string{e.name("one"), e.name("two")}
	var mu sync.Mutex
	came := map[string][]string{} // by group and key
	n := 0
	start := func(b *bus.Bus) (running []*running) {
		for _, group := range groups {
			r := router.New(b, group)
			r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
				mu.Lock()
				defer mu.Unlock()
				came[group+m.Key] = append(came[group+m.Key], m.ID)
				n++
				return nil
			})
			running = append(running, e.run(r))
		}
		return running
	}
	until := func(what string, count int) {
		e.wait(what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return n >= count
		})
	}
	cancel := func(id, key string) {
		e.must(b.Publish(e.ctx, topic, bus.Cancellation{Key: key, ID: id}), "cancel")
	}
	first := start(b)
	var msgs []*bus.Message
	for i := range keys {
		key := fmt.Sprint(i)
		for j, id := range []string{"gone-", "stays-"} {
			m := &bus.Message{ID: id + key, Key: key}
			bus.WithDelay(due + time.Duration(j)*500*time.Millisecond)(m)
			msgs = append(msgs, m)
		}
	}
	e.publish(b, topic, msgs...)
	for i := range keys / 2 {
		cancel("gone-"+fmt.Sprint(i), fmt.Sprint(i))
	}
	msgs = msgs[:0]
	for i := range keys {
		msgs = append(msgs, &bus.Message{ID: "now", Key: fmt.Sprint(i)})
	}
	e.publish(b, topic, msgs...)
	until("what is not delayed", len(groups)*keys)
	for _, r := range first {
		r.drain()
	}
	for i := keys / 2; i < keys; i++ { // while no member is there
		cancel("gone-"+fmt.Sprint(i), fmt.Sprint(i))
	}
	cancel("unknown", "0")
	second := e.bus()
	if !e.capabilities(b).Durable {
		second = b
	}
	then := start(second)
	until("what is delayed and not cancelled", 2*len(groups)*keys)
	cancel("stays-0", "0") // too late
	e.publish(b, topic, &bus.Message{ID: "last", Key: "0"})
	until("what was published last", (2*keys+1)*len(groups))
	for _, r := range then {
		r.drain()
	}
	third := e.bus() // it finds nothing parked: a leftover would come before the key's next message
	if !e.capabilities(b).Durable {
		third = b
	}
	start(third)
	msgs = msgs[:0]
	for i := range keys {
		msgs = append(msgs, &bus.Message{ID: "end", Key: fmt.Sprint(i)})
	}
	e.publish(b, topic, msgs...)
	until("what the third member is there for", (3*keys+1)*len(groups))
	mu.Lock()
	defer mu.Unlock()
	for _, group := range groups {
		for i := range keys {
			key := fmt.Sprint(i)
			want := []string{"now", "stays-" + key}
			if i == 0 {
				want = append(want, "last")
			}
			want = append(want, "end")
			if got := came[group+key]; !slices.Equal(got, want) {
				e.errorf("of key %s came %v, want %v", key, got, want)
			}
		}
	}
}
