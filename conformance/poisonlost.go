package conformance

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// lostDriver is a driver whose members have lost their lanes whenever they settle.
type lostDriver struct{ driver.Driver }

// Subscribe implements bus.Driver.
func (d lostDriver) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	source, err := d.Driver.Subscribe(ctx, s, o)
	if p, ok := source.(driver.ParkingSource); ok {
		return lostParkingSource{p}, err
	}
	return lostSource{source}, err
}

type lostSource struct{ bus.Source }

// Settle implements bus.Source.
func (lostSource) Settle(context.Context, []bus.Token) error { return bus.ErrStale }

type lostParkingSource struct{ driver.ParkingSource }

// Settle implements bus.Source.
func (lostParkingSource) Settle(context.Context, []bus.Token) error { return bus.ErrStale }

// poisonLaneLost: lanes are lost when their messages are in the poison queue and are not settled
// yet. The next owner poisons them again, and each has one entry all the same, also if another
// message has its id. A failure after a replay makes a new entry, and each message is handled once.
func poisonLaneLost(e *env) {
	b := e.bus()
	t := &lostTrial{env: e, topic: e.name("lost"), group: e.name("g"), handled: map[string]int{}}
	msgs := []*bus.Message{
		{ID: "same", Key: "k", Payload: []byte("0")},
		{ID: "same", Key: "k", Payload: []byte("1")},
		{ID: "other", Key: "k", Payload: []byte("2")},
		{ID: "parked", Key: "l", Payload: []byte("3")},
	}
	if e.capabilities(b).Serial { // the next message comes when the one before is settled
		msgs = msgs[:1]
	}
	n := len(msgs)
	d := &awayDriver{Driver: lostDriver{driver.Of(b)}} // it counts the entries
	member := t.member(bus.New(d))
	e.publish(b, t.topic, msgs...)
	e.wait("the first entries", func() bool { return d.puts.Load() == int64(n) })
	member.drain()
	next := b
	if e.capabilities(b).Durable {
		next = e.bus()
	}
	member = t.member(next)
	e.wait("the failures at the next owner", func() bool { return t.refusals() == 2*n })
	member.drain()
	if entries := len(e.poisoned(b, t.group)); entries != n {
		e.errorf("%d messages have %d entries in the poison queue", n, entries)
	}
	q := e.replaying(b, t.group)
	t.member(next)
	t.replay(q, n)
	e.wait("the entries after a replay", func() bool {
		entries := e.poisoned(b, t.group)
		return len(entries) == n && !slices.ContainsFunc(entries, func(p driver.PoisonEntry) bool { return p.Failure.Replays != 1 })
	})
	t.accept()
	t.replay(q, n)
	e.wait("the replayed messages", func() bool { return t.distinct() == n })
	t.mu.Lock()
	defer t.mu.Unlock()
	for payload, calls := range t.handled {
		if calls != 1 {
			e.errorf("message %s was handled %d times", payload, calls)
		}
	}
}

// lostTrial is one run of the check.
type lostTrial struct {
	*env
	topic, group string

	mu      sync.Mutex
	refused int            // calls that failed for good
	accepts bool           // calls succeed
	handled map[string]int // by payload
}

func (t *lostTrial) member(b *bus.Bus) *running {
	r := router.New(b, t.group)
	r.HandleFunc(t.topic, func(ctx context.Context, m *bus.Message) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		switch {
		case t.accepts:
			t.handled[string(m.Payload)]++
			return nil
		case m.ID == "parked" && bus.DeliveryFrom(ctx).Attempt == 1 && bus.DeliveryFrom(ctx).Failure == nil:
			return bus.RetryAfter(errors.New("later"), 1100*time.Millisecond)
		}
		t.refused++
		return bus.Permanent(errors.New("refused"))
	})
	return t.run(r)
}

func (t *lostTrial) replay(q *poison.Queue, n int) {
	_, err := q.Replay(t.ctx, poison.Filter{}, poison.Options{Expect: &n})
	t.must(err, "replay")
}

func (t *lostTrial) accept() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.accepts = true
}

func (t *lostTrial) refusals() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refused
}

func (t *lostTrial) distinct() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.handled)
}
