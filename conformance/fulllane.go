package conformance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

const (
	fullRoom  = 20 // messages that fit into a lane, by default
	fullExtra = 40 // messages of the waiting key that do not fit
	fullSlow  = 64 // keys with a message that is tried again in a second
	fullQuick = 100
)

// parkingFullLane: a lane that is full refuses messages by themselves, and parks others when there
// is room again. One key waits, and has more followers than its lane has room for. Meanwhile other
// keys and other lanes go on, and park. Somebody is told. Nothing is lost or out of order, also
// when the lane moves. When the key need not wait any longer, all that did not fit goes on.
func parkingFullLane(e *env) {
	b := e.bus()
	e.parks(b)
	t := &fullTrial{ledger: e.ledger(), topic: e.name("full"), group: e.name("g"), room: e.o.ParkedRoom, tried: map[string]bool{}, lanes: map[string]int32{}}
	if t.room == 0 {
		t.room = fullRoom
	}
	t.refusals(b)
	member := t.member(b)
	for range t.room + fullExtra {
		e.publish(b, t.topic, t.each(0, 1)...)
	}
	e.wait("the router to tell of a full lane", func() bool {
		return member.Health().Err() != nil || slices.ContainsFunc(t.log.unexpected(), func(s string) bool { return strings.Contains(s, "park") })
	})
	e.publish(b, t.topic, t.each(1, 1+fullSlow)...)
	t.pass(b)
	e.wait("messages that are tried again in other lanes", t.othersAreDone)

	member.drain()
	next := b
	if e.capabilities(b).Durable {
		next = e.bus()
	}
	member = t.member(next)
	t.pass(b)
	if n := t.handled(); n > 0 {
		e.errorf("%d messages were handled, although their key waits", n)
	}
	t.goes.Store(true)
	t.complete()
	t.exact()
	e.wait("nothing to be in flight", func() bool { return member.Health().Routes[0].InFlight == 0 })
	if n := len(e.poisoned(b, t.group)); n > 0 {
		e.errorf("%d messages were poisoned", n)
	}
}

// fullTrial is one run of the check.
type fullTrial struct {
	*ledger
	topic, group string
	room         int         // messages that fit into a lane
	goes         atomic.Bool // the key that waits need not wait any longer
	log          strictLog

	tries sync.Mutex
	tried map[string]bool  // keys with a failed try
	lanes map[string]int32 // by key
}

// narrow is a bus whose lanes have little room.
func (t *fullTrial) narrow(b *bus.Bus) *bus.Bus {
	if t.e.o.ParkedRoom > 0 {
		return b
	}
	return bus.New(&narrowDriver{driver.Of(b)})
}

// refusals looks at the source itself. What a full lane refuses is not lost, and keeps nothing else
// of the same call from being parked.
func (t *fullTrial) refusals(b *bus.Bus) {
	e, topic, group := t.e, t.e.name("refusals"), t.e.name("g-refusals")
	b = t.narrow(b)
	s, _ := e.parkingSource(b, topic, group)
	var msgs []*bus.Message
	for i := range t.room + 2 {
		msgs = append(msgs, &bus.Message{ID: fmt.Sprint("full-", i), Key: "full"})
	}
	for i := range fullSlow {
		msgs = append(msgs, &bus.Message{ID: fmt.Sprint("other-", i), Key: fmt.Sprint(i)})
	}
	e.publish(b, topic, msgs...)
	var full, others []driver.Parking
	for _, d := range e.receive(s, len(msgs)) {
		if p := (driver.Parking{Delivery: d}); d.Key == "full" {
			full = append(full, p)
		} else {
			others = append(others, p)
		}
	}
	others = slices.DeleteFunc(others, func(p driver.Parking) bool { return p.Lane == full[0].Lane })
	others = others[:min(1, len(others))] // none if the group has one lane
	e.must(s.Park(e.ctx, full[:t.room]), "park as many as there is room for")

	call := slices.Concat(full[t.room:], full[:1], others) // two too many, one that has its place, one elsewhere
	err := s.Park(e.ctx, call)
	errs, ok := errors.AsType[*bus.PublishError](err)
	if !ok || len(errs.Errs) != len(call) {
		e.fatalf("park in a full lane and elsewhere: %v, want an error for each message that does not fit", err)
	}
	for i, err := range errs.Errs {
		if fits := i >= 2; fits != (err == nil) || fits != call[i].Token.Parked || !bus.IsRetryable(err) && !fits {
			e.errorf("message %s: parked %v, %v", call[i].ID, call[i].Token.Parked, err)
		}
	}
	e.must(s.Settle(e.ctx, []bus.Token{full[1].Token}), "settle one that is parked")
	e.wait("room for one more", func() bool {
		err := s.Park(e.ctx, call[:1])
		if err != nil && !bus.IsRetryable(err) {
			e.fatalf("park when there is room: %v", err)
		}
		return err == nil
	})
	e.must(s.Close(e.ctx), "close")
	next, o := e.parkingSource(b, topic, group)
	left := 1 + fullSlow - len(others) // and the last one of the key
	if got := e.receive(next, left); !slices.ContainsFunc(got, func(d bus.Delivery) bool { return d.ID == full[t.room+1].ID }) {
		e.errorf("a message that did not fit does not come to the next owner")
	}
	e.told(o, t.room+len(others))
	e.must(next.Close(e.ctx), "close")
}

// member starts one more member of the group.
func (t *fullTrial) member(b *bus.Bus) *running {
	r := router.New(t.narrow(b), t.group, router.InFlight(400, 64<<20), router.Logger(slog.New(&t.log)),
		router.Policy{Retry: slices.Repeat(router.Schedule{time.Second}, 100)})
	r.HandleFunc(t.topic, t.handler(t.work))
	return t.e.run(r)
}

// work fails the first key's messages while it waits, and the first try of each slow key.
func (t *fullTrial) work(ctx context.Context, m *bus.Message) error {
	t.tries.Lock()
	defer t.tries.Unlock()
	t.lanes[m.Key] = bus.DeliveryFrom(ctx).Lane
	again := t.tried[m.Key]
	t.tried[m.Key] = true
	if n := keyNumber(m.Key); n == 0 && !t.goes.Load() || n > 0 && n <= fullSlow && !again {
		return errors.New("not yet")
	}
	return nil
}

// keyNumber is the number of a key of [ledger.each].
func keyNumber(key string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(key, "key-"))
	return n
}

// pass has messages of other keys handled while the first key waits.
func (t *fullTrial) pass(b *bus.Bus) {
	const from, to = 1 + fullSlow, 1 + fullSlow + fullQuick
	t.e.publish(b, t.topic, t.each(from, to)...)
	t.e.wait("messages of other keys to pass a lane that is full", func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		for i := from; i < to; i++ {
			if key := "key-" + strconv.Itoa(i); len(t.order[key]) < len(t.byKey[key]) {
				return false
			}
		}
		return true
	})
}

// othersAreDone says whether the slow keys of all other lanes had their second try.
func (t *fullTrial) othersAreDone() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tries.Lock()
	defer t.tries.Unlock()
	for i := 1; i <= fullSlow; i++ {
		key := "key-" + strconv.Itoa(i)
		if lane, tried := t.lanes[key]; !tried || lane != t.lanes["key-0"] && len(t.order[key]) == 0 {
			return false
		}
	}
	return true
}

// handled is how many messages of the first key were handled.
func (t *fullTrial) handled() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.order["key-0"])
}
