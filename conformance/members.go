package conformance

import (
	"context"
	"errors"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var memberChecks = []check{
	{"members/stale-settle", membersStale},
	{"members/leave-and-join", membersLeaveJoin},
}

// membersStale: tokens of an ownership that ended settle nothing: the messages come to the next owner.
func membersStale(e *env) {
	b := e.bus()
	topic, group := e.name("stale"), e.name("g")
	sub := bus.Subscription{Topic: topic, Group: group}
	s, _ := e.source(b, sub)
	e.publish(b, topic, &bus.Message{ID: "one", Key: "k"}, &bus.Message{ID: "two", Key: "k"})
	old := e.receive(s, 2)
	e.must(s.Close(e.ctx), "close")
	if err := s.Settle(e.ctx, []bus.Token{old[0].Token}); !errors.Is(err, bus.ErrStale) && !errors.Is(err, bus.ErrClosed) {
		e.errorf("settle after close: %v", err)
	}
	other := e.bus()
	s, _ = e.source(other, sub)
	again := e.receive(s, 2)
	if again[0].ID != "one" || again[1].ID != "two" {
		e.errorf("the next owner got %s and %s", again[0].ID, again[1].ID)
	}
	if again[0].Token == old[0].Token {
		e.errorf("two ownerships gave the same token %+v", old[0].Token)
	}
	if err := s.Settle(e.ctx, []bus.Token{old[0].Token, old[1].Token}); !errors.Is(err, bus.ErrStale) {
		e.errorf("settle with tokens of an old ownership: %v, want ErrStale", err)
	}
	e.must(s.Close(e.ctx), "close")
	s, _ = e.source(b, sub)
	if third := e.receive(s, 2); third[0].ID != "one" || third[1].ID != "two" {
		e.errorf("stale tokens settled something: then came %s and %s", third[0].ID, third[1].ID)
	} else if err := s.Settle(e.ctx, []bus.Token{third[0].Token, third[1].Token}); err != nil {
		e.errorf("settle: %v", err)
	}
}

// membersLeaveJoin: members join and leave under load; nothing is lost or repeated, and keys stay in order.
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
