package conformance

import (
	"context"
	"errors"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var groupChecks = []check{
	{"groups/fan-out", groupsFanOut},
	{"groups/share", groupsShare},
	{"groups/topics-apart", groupsTopicsApart},
	{"groups/published-before", groupsPublishedBefore},
	{"groups/late", groupsLate},
	{"groups/latest", groupsLatest},
	{"groups/start-at", groupsStartAt},
}

// groupsFanOut: each of three groups gets every message once.
func groupsFanOut(e *env) {
	b := e.bus()
	topic := e.name("fanout")
	root := router.New(b, e.name("g0"))
	l := e.ledger()
	msgs := l.make(300, 10)
	ledgers := []*ledger{l, l.shared(), l.shared()}
	for i, name := range []string{"g0", "g1", "g2"} {
		root.Group(e.name(name)).HandleFunc(topic, ledgers[i].handler(nil))
	}
	e.run(root)
	e.publish(b, topic, msgs...)
	for _, l := range ledgers {
		l.complete()
		l.exact()
	}
}

// groupsShare: two members of a group share its messages; none comes twice, and keys stay in order
// across them.
func groupsShare(e *env) {
	topic, group := e.name("share"), e.name("g")
	l := e.ledger()
	counts := make([]int, 2)
	var buses []*bus.Bus
	for i := range counts {
		b := e.bus()
		buses = append(buses, b)
		r := router.New(b, group)
		r.HandleFunc(topic, l.handler(func(context.Context, *bus.Message) error {
			l.mu.Lock()
			counts[i]++
			l.mu.Unlock()
			return nil
		}))
		e.run(r)
	}
	share := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return counts[0] > 0 && counts[1] > 0
	}
	for !share() { // a second member may need a moment to get its lanes
		e.publish(buses[0], topic, l.make(200, 100)...)
		l.complete()
		e.pause(20*time.Millisecond, "one of two members gets all messages")
	}
	for range 5 {
		e.publish(buses[1], topic, l.make(200, 100)...)
	}
	l.complete()
	l.exact()
}

// groupsTopicsApart: two topics with the same group and keys do not mix.
func groupsTopicsApart(e *env) {
	b := e.bus()
	r := router.New(b, e.name("g"))
	names := []string{"one", "two", "one.two"}
	var ledgers []*ledger
	for _, name := range names {
		l := e.ledger()
		ledgers = append(ledgers, l)
		r.HandleFunc(e.name(name), l.handler(func(ctx context.Context, m *bus.Message) error {
			if d := bus.DeliveryFrom(ctx); d.Topic != e.name(name) {
				e.errorf("message %s of %s says that it is of %s", m.ID, name, d.Topic)
			}
			return nil
		}))
	}
	e.run(r)
	for i, name := range names {
		e.publish(b, e.name(name), ledgers[i].make(200, 5)...)
	}
	for _, l := range ledgers {
		l.complete()
		l.exact()
	}
}

// groupsPublishedBefore: messages published before the first group comes are kept for it, in order.
func groupsPublishedBefore(e *env) {
	b := e.bus()
	topic := e.name("before")
	l := e.ledger()
	e.publish(b, topic, l.make(200, 10)...)
	r := router.New(b, e.name("g"))
	r.HandleFunc(topic, l.handler(nil))
	e.run(r)
	e.publish(b, topic, l.make(200, 10)...)
	l.complete()
	l.exact()
}

// groupsLate: a late group gets messages published and consumed before.
func groupsLate(e *env) {
	b := e.bus()
	if !e.capabilities(b).Replay {
		e.lacking("a late group gets only what is published after it came")
	}
	topic := e.name("late")
	early := e.ledger()
	r := router.New(b, e.name("early"))
	r.HandleFunc(topic, early.handler(nil))
	run := e.run(r)
	e.publish(b, topic, early.make(300, 10)...)
	early.complete()
	run.drain()
	late := early.shared()
	r = router.New(b, e.name("late"))
	r.HandleFunc(topic, late.handler(nil))
	e.run(r)
	late.complete()
	late.exact()
}

// groupsLatest: a group that starts at the latest sees no old message, and every message published
// once it is ready.
func groupsLatest(e *env) {
	b := e.bus()
	topic := e.name("latest")
	l := e.ledger()
	e.publish(b, topic, &bus.Message{ID: "old", Key: "key-1"})
	r := router.New(b, e.name("g"), router.From(bus.Latest))
	r.HandleFunc(topic, l.handler(nil))
	e.run(r)
	e.publish(b, topic, l.make(200, 10)...)
	l.complete()
	l.exact()
}

// groupsStartAt: a group that starts at a time gets the messages published from then on.
func groupsStartAt(e *env) {
	b := e.bus()
	topic := e.name("startat")
	e.publish(b, topic, &bus.Message{ID: "old"})
	e.pause(1100*time.Millisecond, "so that even a clock of seconds tells the times apart")
	at := time.Now().Add(-500 * time.Millisecond)
	l := e.ledger()
	e.publish(b, topic, l.make(50, 5)...)
	r := router.New(b, e.name("g"), router.From(bus.StartAt(at)))
	r.HandleFunc(topic, l.handler(nil))
	if !e.capabilities(b).StartAt {
		_, err := b.Driver().Subscribe(e.ctx, bus.Subscription{Topic: topic, Group: e.name("h"), Start: bus.StartAt(at), InFlight: 1, Bytes: 1}, &lanes{})
		if !errors.Is(err, bus.ErrUnsupported) {
			e.errorf("subscribe with StartAt: %v, want ErrUnsupported", err)
		}
		e.lacking("a group cannot start at a time")
	}
	e.run(r)
	l.complete()
	l.exact()
}
