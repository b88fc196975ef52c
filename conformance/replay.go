package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// awayDriver is a driver with a poison store that is away for a while.
type awayDriver struct {
	driver.Driver
	away atomic.Bool
	puts atomic.Int64
}

type awayStore struct {
	driver.PoisonStore
	driver *awayDriver
}

// Poison implements driver.Driver.
func (d *awayDriver) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	s, err := d.Driver.Poison(ctx, group)
	return &awayStore{s, d}, err
}

// Put implements driver.PoisonStore.
func (s *awayStore) Put(ctx context.Context, entries ...driver.PoisonEntry) error {
	if s.driver.puts.Add(1); s.driver.away.Load() {
		return errors.New("the poison store is away")
	}
	return s.PoisonStore.Put(ctx, entries...)
}

// poisonAway: while the poison store is away, a message for it stays, its key waits and no hot loop
// tries. The handler is not called for it again.
func poisonAway(e *env) {
	under := e.bus()
	d := &awayDriver{Driver: driver.Of(under)}
	b := bus.New(d)
	topic, group := e.name("away"), e.name("g")
	var mu sync.Mutex
	var handled []string
	bad := 0
	r := router.New(b, group)
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if m.ID == "bad" {
			bad++
			return bus.Permanent(errors.New("no"))
		}
		handled = append(handled, m.ID)
		return nil
	})
	d.away.Store(true)
	e.run(r)
	e.publish(b, topic, &bus.Message{ID: "bad", Key: "a"}, &bus.Message{ID: "behind", Key: "a"})
	e.wait("a try to poison", func() bool { return d.puts.Load() > 0 })
	if !e.capabilities(b).Serial {
		e.publish(b, topic, &bus.Message{ID: "other", Key: "b"})
		e.wait("another key's message", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Contains(handled, "other")
		})
	}
	e.pause(time.Second, "the poison store is away")
	if n := d.puts.Load(); n > 50 {
		e.errorf("%d tries to poison within a second", n)
	}
	mu.Lock()
	if slices.Contains(handled, "behind") {
		e.errorf("the key did not wait for what is neither handled nor poisoned")
	}
	mu.Unlock()
	d.away.Store(false)
	e.wait("what waited behind it", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(handled, "behind")
	})
	if n := len(e.poisoned(under, group)); n != 1 {
		e.errorf("%d entries in the poison queue, want 1", n)
	}
	mu.Lock()
	defer mu.Unlock()
	if bad != 1 {
		e.errorf("the handler was called %d times for what it had refused for good", bad)
	}
}

// refused publishes n messages that the handlers of two groups refuse, and waits until they are
// poisoned. From then on the handlers accept messages and note them in the books.
func (e *env) refused(b *bus.Bus, n int) (groups [2]string, books [2]*book) {
	topic := e.name("refused")
	for i := range groups {
		groups[i] = e.name(fmt.Sprint("g", i))
		k := &book{}
		books[i] = k
		r := router.New(b, groups[i])
		r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
			if !k.accepts.Load() {
				return bus.Permanent(errors.New("refused"))
			}
			k.note(ctx, m)
			return nil
		}, router.Name("handler-"+fmt.Sprint(i)))
		e.run(r)
	}
	for i := range n {
		e.publish(b, topic, &bus.Message{ID: fmt.Sprintf("%03d", i), Key: fmt.Sprint("k", i%3)})
	}
	for i, group := range groups {
		e.wait("all to be poisoned", func() bool { return len(e.poisoned(b, group)) == n })
		books[i].accepts.Store(true)
	}
	return groups, books
}

// book holds the messages that a handler has accepted.
type book struct {
	accepts atomic.Bool
	mu      sync.Mutex
	ids     []string
	calls   map[string]int
	highest map[string]string
	disorder,
	replays int
}

func (k *book) note(ctx context.Context, m *bus.Message) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.calls == nil {
		k.calls, k.highest = map[string]int{}, map[string]string{}
	}
	if k.calls[m.ID]++; k.calls[m.ID] > 1 {
		return
	}
	k.ids = append(k.ids, m.ID)
	if m.ID < k.highest[m.Key] {
		k.disorder++
	}
	k.highest[m.Key] = m.ID
	if f := bus.DeliveryFrom(ctx).Failure; f != nil {
		k.replays = max(k.replays, f.Replays)
	}
}

func (k *book) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.ids)
}

// replaying ends the check if the driver cannot replay.
func (e *env) replaying(b *bus.Bus, group string) *poison.Queue {
	if _, ok := bus.As[driver.Injector](b); !ok {
		e.lacking("a message cannot be given to one group")
	}
	q, err := poison.Open(e.ctx, b, group)
	e.must(err, "open the poison queue")
	return q
}

// poisonReplay: a replay reaches the handler that refused, in the order of keys, with the same id,
// and no other group.
func poisonReplay(e *env) {
	const n = 30
	b := e.bus()
	q := e.replaying(b, e.name("g0"))
	groups, books := e.refused(b, n)
	result, err := q.Replay(e.ctx, poison.Filter{}, poison.Options{})
	e.must(err, "replay")
	if result.Done != n {
		e.errorf("%d of %d were replayed", result.Done, n)
	}
	e.wait("what was replayed", func() bool { return books[0].count() == n })
	if k := books[0]; k.disorder > 0 || k.replays != 1 {
		e.errorf("%d came out of order; replays are counted as %d", k.disorder, k.replays)
	}
	if left := len(e.poisoned(b, groups[0])); left != 0 {
		e.errorf("%d entries are still in the poison queue", left)
	}
	if left := len(e.poisoned(b, groups[1])); left != n || books[1].count() != 0 {
		e.errorf("of the other group, %d entries are left and %d messages came", left, books[1].count())
	}
}

// poisonReplayInterrupted: a replay that ends half-way loses nothing; the next goes on.
func poisonReplayInterrupted(e *env) {
	const n = 250
	b := e.bus()
	q := e.replaying(b, e.name("g0"))
	groups, books := e.refused(b, n)
	ctx, cancel := context.WithCancel(e.ctx)
	_, err := q.Replay(ctx, poison.Filter{}, poison.Options{Progress: func(done, _ int) {
		if done > 0 {
			cancel()
		}
	}})
	cancel()
	if err == nil {
		e.errorf("an interrupted replay reports success")
	}
	_, err = q.Replay(e.ctx, poison.Filter{}, poison.Options{})
	e.must(err, "replay again")
	e.wait("what was replayed", func() bool { return books[0].count() == n })
	if left := len(e.poisoned(b, groups[0])); left != 0 {
		e.errorf("%d entries are still in the poison queue", left)
	}
}

// poisonReplayAtMostOnce: a group that handles at most once gets replayed messages once, whichever
// member has its lanes then.
func poisonReplayAtMostOnce(e *env) {
	const n = 20
	b := e.bus()
	topic, group := e.name("once"), e.name("g")
	q := e.replaying(b, group)
	k := &book{}
	start := func(b *bus.Bus) *running {
		r := router.New(b, group, router.Guarantee(router.AtMostOnce))
		r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
			if !k.accepts.Load() {
				return bus.Permanent(errors.New("refused"))
			}
			k.note(ctx, m)
			return nil
		})
		return e.run(r)
	}
	first := start(b)
	for i := range n {
		e.publish(b, topic, &bus.Message{ID: fmt.Sprintf("%03d", i), Key: fmt.Sprint("k", i%3)})
	}
	e.wait("all to be poisoned", func() bool { return len(e.poisoned(b, group)) == n })
	k.accepts.Store(true)
	_, err := q.Replay(e.ctx, poison.Filter{}, poison.Options{})
	e.must(err, "replay")
	e.wait("what was replayed", func() bool { return k.count() == n })
	first.drain()
	second := e.bus()
	if !e.capabilities(b).Durable {
		second = b
	}
	start(second)
	for i := range 3 { // behind possible repeats
		e.publish(b, topic, &bus.Message{ID: fmt.Sprint("9", i), Key: fmt.Sprint("k", i)})
	}
	e.wait("what was published last", func() bool { return k.count() == n+3 })
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, calls := range k.calls {
		if calls != 1 {
			e.errorf("message %s was handled %d times", id, calls)
		}
	}
}

// poisonKeyWaitsElsewhere: a key that waits for a replay waits on when its lane goes to another
// member, and no handler is called for the poisoned message before its replay.
func poisonKeyWaitsElsewhere(e *env) {
	b := e.bus()
	e.parks(b)
	topic, group := e.name("waits"), e.name("g")
	q := e.replaying(b, group)
	k := &book{}
	var refused atomic.Int32
	start := func(b *bus.Bus) *running {
		r := router.New(b, group, router.Policy{Retry: router.Never, KeyWaits: true})
		r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
			if m.Key == "a" && !k.accepts.Load() {
				refused.Add(1)
				return errors.New("not yet")
			}
			k.note(ctx, m)
			return nil
		})
		return e.run(r)
	}
	first := start(b)
	e.publish(b, topic, &bus.Message{ID: "0", Key: "a"}, &bus.Message{ID: "1", Key: "a"})
	e.wait("the poisoned message", func() bool { return len(e.poisoned(b, group)) == 1 })
	first.drain()
	next := b
	if e.capabilities(b).Durable {
		next = e.bus()
	}
	start(next)
	for i := range 16 {
		e.publish(b, topic, &bus.Message{ID: "other", Key: fmt.Sprint("other", i)})
	}
	e.pause(time.Second, "a handler would be called now")
	if n := refused.Load(); n != 1 {
		e.errorf("the handler was called %d times for a message that waits for its replay", n)
	}
	k.accepts.Store(true)
	result, err := q.Replay(e.ctx, poison.Filter{Key: "a"}, poison.Options{})
	e.must(err, "replay")
	if result.Done != 1 {
		e.errorf("%d entries were replayed, want 1", result.Done)
	}
	e.wait("the key's messages", func() bool { return k.count() == 3 }) // the other ones have one id
	if k.disorder > 0 {
		e.errorf("the key's messages came out of order")
	}
}

// poisonKeyWaits: if keys wait, the messages behind a poisoned one are handled after it is replayed
// or dropped.
func poisonKeyWaits(e *env) {
	b := e.bus()
	e.parks(b)
	topic, group := e.name("waits"), e.name("g")
	q := e.replaying(b, group)
	var mu sync.Mutex
	var handled []string
	accepts := false
	r := router.New(b, group, router.Policy{Retry: router.Never, KeyWaits: true})
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if !accepts && (m.ID == "a0" || m.ID == "b0") {
			return errors.New("not yet")
		}
		handled = append(handled, m.ID)
		return nil
	})
	e.run(r)
	e.publish(b, topic, &bus.Message{ID: "a0", Key: "a"}, &bus.Message{ID: "b0", Key: "b"})
	e.wait("two poisoned messages", func() bool { return len(e.poisoned(b, group)) == 2 })
	e.publish(b, topic, &bus.Message{ID: "a1", Key: "a"}, &bus.Message{ID: "b1", Key: "b"}, &bus.Message{ID: "c0", Key: "c"})
	until := func(what string, want ...string) {
		e.wait(what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(handled) >= len(want)
		})
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(handled, want) {
			e.errorf("%s: handled are %v, want %v", what, handled, want)
		}
	}
	until("a key that waits for nothing", "c0")
	mu.Lock()
	accepts = true
	mu.Unlock()
	_, err := q.Replay(e.ctx, poison.Filter{Key: "a"}, poison.Options{})
	e.must(err, "replay")
	until("after the replay", "c0", "a0", "a1")
	_, err = q.Drop(e.ctx, poison.Filter{Key: "b"}, poison.Options{})
	e.must(err, "drop")
	until("after the drop", "c0", "a0", "a1", "b1")
}
