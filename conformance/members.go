package conformance

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var memberChecks = []check{
	{"members/stale-settle", membersStale},
	{"members/leave-and-join", membersLeaveJoin},
}

// membersStale: tokens of an ownership that ended settle nothing: the messages come to the next
// owner.
func membersStale(e *env) {
	b := e.bus()
	topic, group := e.name("stale"), e.name("g")
	sub := bus.Subscription{Topic: topic, Group: group}
	s, _ := e.source(b, sub)
	e.publish(b, topic, &bus.Message{ID: "one", Key: "k"}, &bus.Message{ID: "two", Key: "k"})
	ids := []string{"one", "two"}
	if e.serial {
		ids = ids[:1] // the second comes when the first is settled
	}
	received := func() (got []string, tokens []bus.Token) {
		for _, d := range e.receive(s, len(ids)) {
			got, tokens = append(got, d.ID), append(tokens, d.Token)
		}
		return got, tokens
	}
	_, old := received()
	e.must(s.Close(e.ctx), "close")
	if err := s.Settle(e.ctx, old[:1]); !errors.Is(err, bus.ErrStale) && !errors.Is(err, bus.ErrClosed) {
		e.errorf("settle after close: %v", err)
	}
	other := e.bus()
	s, _ = e.source(other, sub)
	again, tokens := received()
	if !slices.Equal(again, ids) {
		e.errorf("the next owner got %q", again)
	}
	if tokens[0] == old[0] {
		e.errorf("two ownerships gave the same token %+v", old[0])
	}
	if err := s.Settle(e.ctx, old); !errors.Is(err, bus.ErrStale) {
		e.errorf("settle with tokens of an old ownership: %v, want ErrStale", err)
	}
	e.must(s.Close(e.ctx), "close")
	s, _ = e.source(b, sub)
	if third, tokens := received(); !slices.Equal(third, ids) {
		e.errorf("stale tokens settled something: then came %q", third)
	} else if err := s.Settle(e.ctx, tokens); err != nil {
		e.errorf("settle: %v", err)
	}
}

// membersLeaveJoin: members join and leave under load; nothing is lost or repeated, and keys stay
// in order.
func membersLeaveJoin(e *env) {
	topic, group := e.name("members"), e.name("g")
	l := e.ledger()
	b := e.bus()
	start := func(b *bus.Bus) *running {
		r := router.New(b, group, router.Workers(8))
		r.HandleFunc(topic, l.handler(func(context.Context, *bus.Message) error {
			time.Sleep(time.Millisecond)
			return nil
		}))
		return e.run(r)
	}
	start(b)
	others := []*bus.Bus{e.bus(), e.bus()}
	var guests []*running
	for round := range 6 {
		e.publish(b, topic, l.make(300, 40)...)
		switch {
		case round%3 == 2:
			for _, g := range guests {
				g.drain()
			}
			guests = nil
		default:
			guests = append(guests, start(others[len(guests)]))
		}
		l.waitFor(func() int { return 300*(round+1) - 150 })
	}
	l.complete()
	l.exact()
}
