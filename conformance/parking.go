package conformance

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

var parkingChecks = []check{
	{"parking/store", parkingStore},
	{"parking/stale", parkingStale},
	{"parking/inject", parkingInject},
	{"parking/full-lane", parkingFullLane},
}

// parkingSource subscribes at a driver that can park.
func (e *env) parkingSource(b *bus.Bus, topic, group string) (driver.ParkingSource, *lanes) {
	if !e.capabilities(b).Parking {
		e.lacking("messages cannot be parked at the broker")
	}
	s, o := e.source(b, bus.Subscription{Topic: topic, Group: group})
	p, ok := s.(driver.ParkingSource)
	if !ok {
		e.fatalf("the driver claims Parking, but its source is no driver.ParkingSource")
	}
	return p, o
}

// told waits until the observer knows of n parked messages, and returns them in the order of their
// arrival.
func (e *env) told(o *lanes, n int) []driver.Parked {
	var ps []driver.Parked
	e.wait(fmt.Sprintf("the router to be told of %d parked messages", n), func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		ps = slices.Clone(o.parked)
		return len(ps) >= n
	})
	if len(ps) > n {
		e.errorf("the router was told of %d parked messages, want %d", len(ps), n)
	}
	return ps
}

func (e *env) fetch(s driver.ParkingSource, ps []driver.Parked) []bus.Delivery {
	tokens := make([]bus.Token, len(ps))
	for i, p := range ps {
		tokens[i] = p.Token
	}
	dst := make([]bus.Delivery, len(ps))
	n, err := s.Fetch(e.ctx, tokens, dst)
	e.must(err, "fetch")
	for _, d := range dst[:n] {
		if !slices.Contains(tokens, d.Token) {
			e.errorf("fetched a delivery with the token %+v, which was not asked for", d.Token)
		}
	}
	return dst[:n]
}

// parkingStore: parked messages come to the lane's next owner, before anything else, in order and
// with all their facts. They are not delivered again. Parked again, a message keeps its place;
// settled, it is gone.
func parkingStore(e *env) {
	at := time.Now().UTC().Truncate(time.Millisecond)
	t := storeTrial{
		env: e, topic: e.name("parking"), group: e.name("g"), msgs: sixMessages(at), due: at.Add(30 * 24 * time.Hour), first: bus.Delivery{
			Attempt: 3, Handler: "handler", FirstSeen: at,
			Failure: &bus.Failure{Class: "c", Text: "Ω\n", Stack: "s", Attempts: 2, First: at, Last: at, Replays: 1},
		},
	}
	b := e.bus()
	t.park(b)
	next := e.bus()
	if !e.capabilities(b).Durable {
		next = b
	}
	again := t.nextOwner(next)
	t.lastOwner(b, again)
}

// sixMessages are of one key, with all the facts that a message can have.
func sixMessages(at time.Time) (msgs []*bus.Message) {
	for i := range 6 {
		msgs = append(msgs, &bus.Message{
			ID: fmt.Sprint(i), Key: "k\xff", Type: "t", Source: "/s", Subject: "su", Time: at, ContentType: "x/y", Payload: []byte{0, 0xff, byte(i)},
			Headers: bus.Headers{{Name: "h", Value: "1"}, {Name: "h", Value: "\xfe"}},
		})
	}
	msgs[4].Payload, msgs[5].Payload = nil, []byte{}
	return msgs
}

// storeTrial is one run of the check.
type storeTrial struct {
	*env
	topic, group string
	msgs         []*bus.Message
	due          time.Time    // of message 1
	first        bus.Delivery // message 1's tries, as they are parked
}

// park has the first owner park all messages but message 0, which stays unsettled.
func (t *storeTrial) park(b *bus.Bus) {
	s, _ := t.parkingSource(b, t.topic, t.group)
	t.publish(b, t.topic, t.msgs...)
	ds := t.receive(s, len(t.msgs))
	ps := make([]driver.Parking, len(ds)-1)
	for i := range ps {
		ps[i].Delivery = ds[i+1]
	}
	p := &ps[0]
	p.Due, p.Attempt, p.Failure, p.Handler, p.FirstSeen = t.due, t.first.Attempt, t.first.Failure, t.first.Handler, t.first.FirstSeen
	ps[4].Delayed = true
	t.must(s.Park(t.ctx, ps[:3]), "park")
	t.must(s.Park(t.ctx, ps[3:]), "park")
	for i := range ps {
		if !ps[i].Token.Parked || ps[i].Lane != ds[0].Lane || i > 0 && ps[i].Position <= ps[i-1].Position {
			t.errorf("message %d is parked with the token %+v behind %+v", i, ps[i].Token, ps[max(i-1, 0)].Token)
		}
	}
	t.must(s.Close(t.ctx), "close")
}

// nextOwner is told of the parked messages before anything else, and fetches them. It parks message
// 1 again, and settles messages 2 and 5.
func (t *storeTrial) nextOwner(b *bus.Bus) (again driver.Parking) {
	s, o := t.parkingSource(b, t.topic, t.group)
	if d := t.receive(s, 1)[0]; d.ID != "0" {
		t.errorf("the next owner is given %s, which is parked", d.ID)
	}
	told := t.told(o, 5) // the driver has announced them before
	for i, p := range told {
		if p.Key != "k\xff" || p.Delayed != (i == 4) || i > 0 && p.Position <= told[i-1].Position {
			t.errorf("the next owner is told of %+v at place %d", p, i)
		}
	}
	if moved := told[0].Due.Sub(t.due); moved < 0 || moved > 10*time.Millisecond || told[1].Due.After(time.Now()) {
		t.errorf("due times moved by %v; that of any time is %v", moved, told[1].Due)
	}
	got := t.fetch(s, told)
	if len(got) != 5 {
		t.fatalf("%d of 5 could be fetched", len(got))
	}
	for i, d := range got {
		if d.ID != t.msgs[i+1].ID {
			t.errorf("fetched %s at place %d", d.ID, i)
		}
		same(t.env, t.msgs[i+1], d.Message)
	}
	t.checkTries(got[0])
	again = driver.Parking{Delivery: got[0], Due: t.due.Add(time.Hour)}
	again.Attempt = 4
	t.must(s.Park(t.ctx, []driver.Parking{again}), "park again")
	t.must(s.Settle(t.ctx, []bus.Token{told[1].Token, told[4].Token}), "settle")
	t.must(s.Close(t.ctx), "close")
	return again
}

// checkTries compares message 1's tries with how they were parked.
func (t *storeTrial) checkTries(d bus.Delivery) {
	want := t.first.Failure
	if d.Attempt != t.first.Attempt || d.Handler != t.first.Handler || !d.FirstSeen.Equal(t.first.FirstSeen) || d.Failure == nil ||
		d.Failure.Text != want.Text || !d.Failure.First.Equal(want.First) || d.Failure.Attempts != want.Attempts ||
		d.Failure.Replays != want.Replays || d.Failure.Class != want.Class || d.Failure.Stack != want.Stack {
		t.errorf("of the tries is known: %+v, %+v", d, d.Failure)
	}
}

// lastOwner finds the messages that the owner before left parked.
func (t *storeTrial) lastOwner(b *bus.Bus, again driver.Parking) {
	s, o := t.parkingSource(b, t.topic, t.group)
	t.receive(s, 1)
	told := t.told(o, 3)
	var ids []string
	got := t.fetch(s, told)
	for _, d := range got {
		ids = append(ids, d.ID)
	}
	if want := []string{"1", "3", "4"}; !slices.Equal(ids, want) || got[0].Attempt != again.Attempt || told[0].Due.Before(again.Due) {
		t.errorf("after one was parked again and two were settled, there are %v, want %v; the first is at try %d, due at %v", ids, want, got[0].Attempt, told[0].Due)
	}
}

// parkingStale: tokens of an ownership that ended neither park nor fetch nor settle.
func parkingStale(e *env) {
	b := e.bus()
	topic, group := e.name("stale"), e.name("g")
	s, _ := e.parkingSource(b, topic, group)
	e.publish(b, topic, &bus.Message{ID: "0", Key: "k"}, &bus.Message{ID: "1", Key: "k"})
	ds := e.receive(s, 2)
	parked := []driver.Parking{{Delivery: ds[0]}}
	e.must(s.Park(e.ctx, parked), "park")
	e.must(s.Close(e.ctx), "close")
	s, o := e.parkingSource(b, topic, group)
	e.receive(s, 1)
	e.told(o, 1)
	stale := driver.Parking{Delivery: ds[1]}
	if err := s.Park(e.ctx, []driver.Parking{stale}); !errors.Is(err, bus.ErrStale) {
		e.errorf("park with a token of an old ownership: %v, want ErrStale", err)
	}
	if n, err := s.Fetch(e.ctx, []bus.Token{parked[0].Token}, make([]bus.Delivery, 1)); n != 0 || err != nil && !errors.Is(err, bus.ErrStale) {
		e.errorf("fetch with a token of an old ownership: %d, %v", n, err)
	}
	if err := s.Settle(e.ctx, []bus.Token{parked[0].Token}); !errors.Is(err, bus.ErrStale) {
		e.errorf("settle with a token of an old ownership: %v, want ErrStale", err)
	}
	e.must(s.Close(e.ctx), "close")
	s, o = e.parkingSource(b, topic, group)
	if d := e.receive(s, 1)[0]; d.ID != "1" {
		e.errorf("then came %s", d.ID)
	}
	e.told(o, 1)
}

// parkingInject: messages are parked from outside, with and without an owner, changed and
// withdrawn.
func parkingInject(e *env) {
	b, outside := e.bus(), e.bus()
	if !e.capabilities(b).Durable {
		outside = b
	}
	topic, group := e.name("inject"), e.name("g")
	s, o := e.parkingSource(b, topic, group)
	injector, ok := bus.As[driver.Injector](outside)
	if !ok {
		e.fatalf("the driver claims Parking, but is no driver.Injector")
	}
	e.publish(b, topic, &bus.Message{ID: "x", Key: "k"}) // the lane is ours when it has come
	e.receive(s, 1)
	if err := injector.Inject(e.ctx, topic, e.name("nobody"), []driver.Parking{{Delivery: bus.Delivery{Message: &bus.Message{ID: "1"}}}}); !errors.Is(err, bus.ErrNotFound) {
		e.errorf("inject for a group that does not exist: %v, want ErrNotFound", err)
	}
	parking := func(id string) driver.Parking {
		return driver.Parking{Delayed: true, Delivery: bus.Delivery{Message: &bus.Message{ID: id, Key: "k", Source: "/s", Payload: []byte(id)}, Handler: "h", Attempt: 1, Failure: &bus.Failure{Replays: 1}}}
	}
	e.must(injector.Inject(e.ctx, topic, group, []driver.Parking{parking("1"), parking("2")}), "inject")
	told := e.told(o, 2)
	got := e.fetch(s, told)
	if len(got) != 2 || got[0].ID != "1" || got[1].ID != "2" || got[0].Handler != "h" || got[0].Failure == nil || got[0].Failure.Replays != 1 || !told[0].Delayed {
		e.fatalf("injected messages come as %+v", got)
	}
	e.must(s.Close(e.ctx), "close")
	e.must(injector.Inject(e.ctx, topic, group, []driver.Parking{parking("3")}), "inject for a group without members")
	s, o = e.parkingSource(b, topic, group)
	e.receive(s, 1)
	told = e.told(o, 3)
	for i, d := range e.fetch(s, told) {
		if d.ID != fmt.Sprint(i+1) {
			e.errorf("at place %d is %s", i, d.ID)
		}
	}
	another, gone := parking("another"), parking("another")
	another.Token, gone.Token, gone.Withdraw = told[1].Token, told[0].Token, true
	e.must(injector.Inject(e.ctx, topic, group, []driver.Parking{another, gone}), "change and withdraw messages that have another's place")
	changed := parking("2")
	changed.Token, changed.Due = told[1].Token, time.Now().Add(time.Hour)
	withdrawn := parking("1")
	withdrawn.Token, withdrawn.Withdraw = told[0].Token, true
	e.must(injector.Inject(e.ctx, topic, group, []driver.Parking{changed, withdrawn}), "change and withdraw")
	told = e.told(o, 5)[3:]
	slices.SortFunc(told, func(x, y driver.Parked) int { return int(y.Position - x.Position) })
	if told[0].Token != changed.Token || told[0].Withdrawn || told[0].Due.Before(changed.Due) || told[1].Token != withdrawn.Token || !told[1].Withdrawn {
		e.errorf("of the change and the withdrawal came %+v", told)
	}
	if got := e.fetch(s, []driver.Parked{told[1]}); len(got) != 0 {
		e.errorf("what was withdrawn can be fetched")
	}
	e.must(s.Close(e.ctx), "close")
	s, o = e.parkingSource(b, topic, group)
	e.receive(s, 1)
	var ids []string
	for _, d := range e.fetch(s, e.told(o, 2)) {
		ids = append(ids, d.ID)
	}
	if want := []string{"2", "3"}; !slices.Equal(ids, want) {
		e.errorf("then there are %v, want %v", ids, want)
	}
}
