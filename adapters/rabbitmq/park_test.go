package rabbitmq

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/faults"
)

// A Fetch ends without the message when the message's lane ends.
func TestFetchEndsWithItsLane(t *testing.T) {
	ctx := testContext(t)
	p, c := newProxy(t)
	topic, c := oneLane(t, c)
	d := openDriver(t, c)
	s, o := parkingSource(t, d, topic)
	at := parkOne(t, ctx, d, s, topic, messages(0, 1, 1)[0])
	fetchIDs(t, ctx, s, []driver.Parked{{Token: at.Token}}) // it is here
	probed(t, ctx, s)
	p.hold(consumes)
	queue := parkedName(groupName(topic, "g"), 0)
	before := p.deliveries(queue)
	type result struct {
		n   int
		err error
	}
	fetched := make(chan result, 1)
	go func() {
		n, err := s.Fetch(ctx, []bus.Token{at.Token}, make([]bus.Delivery, 1))
		fetched <- result{n, err}
	}()
	p.wait(t, ctx, "the record", func() bool { return p.given[queue] == before+1 })
	p.Refuse(true)
	o.waitLanes(t, ctx, 0)
	if got := <-fetched; got != (result{}) {
		t.Errorf("fetched %d, %v", got.n, got.err)
	}
	p.Refuse(false)
}

// A lane ends after the record of a message was sent, and before the broker's confirm. The message
// is not parked for its caller: it is handled from where it comes next. This holds beside messages
// that fail.
func TestParkWhileTheLaneEnds(t *testing.T) {
	for _, name := range []string{"alone", "beside a failure"} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p, c := newProxy(t)
			topic, c := oneLane(t, c)
			c.MaxMessage = 64 << 10
			d := openDriver(t, c)
			s, o := parkingSource(t, d, topic)
			o.waitLanes(t, ctx, 1)
			probed(t, ctx, s)
			ms := messages(0, 2, 1)[:1]
			if name != "alone" {
				ms = messages(0, 2, 1)
			}
			publish(t, d, topic, ms...)
			ps := parkAll(receive(t, ctx, s, len(ms)))
			before := ps[0].Token
			if len(ps) > 1 {
				large := *ps[1].Message
				large.Payload = []byte(strings.Repeat("x", c.MaxMessage+storedRoom))
				ps[1].Message = &large
			}
			p.hold(publishes)
			p.mu.Lock()
			confirms := p.told[basicAck]
			p.mu.Unlock()
			parked := make(chan error, 1)
			go func() { parked <- s.Park(ctx, ps) }()
			p.wait(t, ctx, "the confirm", func() bool { return p.told[basicAck] > confirms })
			// The broker closes the lane's channel.
			if err := s.lanes[0].current.Load().ch.Ack(99_999, false); err != nil {
				t.Fatal(err)
			}
			o.wait(t, ctx, "the lane to be lost", func() bool { return len(o.lost) == 1 })
			p.release(t, d)
			err := <-parked
			if pe, ok := errors.AsType[*bus.PublishError](err); ok {
				if len(pe.Errs) != 2 || !errors.Is(pe.Errs[1], bus.ErrTooLarge) {
					t.Errorf("park: %v", err)
				}
				err = pe.Errs[0]
			}
			if !errors.Is(err, bus.ErrStale) || ps[0].Token != before {
				t.Errorf("park: %v, %+v", err, ps[0].Token)
			}
		})
	}
}

// A try of unknown fate, one that failed for sure, one that succeeds: they all have one position,
// and once the message is settled, nothing is left of any.
func TestParkFailsAfterAnUnknownFate(t *testing.T) {
	ctx := testContext(t)
	p, c := newProxy(t)
	topic, c := oneLane(t, c)
	d := openDriver(t, c)
	s, o := parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 1)
	probed(t, ctx, s)
	publish(t, d, topic, messages(0, 1, 1)...)
	ps := parkAll(receive(t, ctx, s, 1))
	try := func(definite bool) {
		t.Helper()
		soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		pe, ok := errors.AsType[*bus.PublishError](s.Park(soon, ps))
		if !ok || bus.IsDefinite(pe.Errs[0]) != definite || ps[0].Token.Parked {
			t.Fatalf("park: %v, %v", pe, ps[0].Token)
		}
	}
	p.Stall(faults.ToServer, true)
	try(false)
	before := p.deliveries(parkedName(groupName(topic, "g"), 0))
	p.Stall(faults.ToServer, false)
	p.wait(t, ctx, "the record", func() bool { return p.given[parkedName(groupName(topic, "g"), 0)] == before+1 })
	session := d.pub.link.Current()
	p.block(t, session, "low on memory")
	try(true)
	p.unblock(session)
	if err := s.Park(ctx, ps); err != nil {
		t.Fatal(err)
	}
	if err := s.Settle(ctx, []bus.Token{ps[0].Token}); err != nil {
		t.Fatal(err)
	}
	nextOwner(t, ctx, s, openDriver(t, brokerConfig(t)), topic, nil)
}
