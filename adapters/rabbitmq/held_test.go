package rabbitmq

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	lot "github.com/millrace-go/millrace/internal/parking"
)

// record makes the record of a parked message, as an owner writes it. command is the name of the
// command that has parked it, or empty.
func record(t testing.TB, m *bus.Message, position, revision int64, command string) amqp.Publishing {
	t.Helper()
	pub, err := encodeParked(&driver.Parking{Delivery: bus.Delivery{Message: m}, Due: time.Now().Add(time.Hour)}, parkMessage)
	if err != nil {
		t.Fatal(err)
	}
	pub.Headers[positionHeader], pub.Headers[revisionHeader] = position, revision
	if command != "" {
		pub.Headers[commandHeader] = command
	}
	return pub
}

// command makes the record of a command that parks a message.
func command(t testing.TB, m *bus.Message, name string) amqp.Publishing {
	t.Helper()
	pub, err := encodeParked(&driver.Parking{Delivery: bus.Delivery{Message: m}, Due: time.Now().Add(time.Hour)}, string(lot.New))
	if err != nil {
		t.Fatal(err)
	}
	pub.Headers[commandHeader] = name
	return pub
}

// put puts records into the parking queue of lane 0, as another process does.
func put(t testing.TB, d *busDriver, topic string, records ...amqp.Publishing) {
	t.Helper()
	err := d.pub.send(testContext(t), len(records), func(i int, x *amqplink.Parcel) error {
		x.Key, x.Publishing = parkedName(groupName(topic, "g"), 0), records[i]
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// oneLane returns a topic, and a configuration by which its group has one lane.
func oneLane(t testing.TB, c Config) (topic string, one Config) {
	t.Helper()
	c.Lanes = 1
	return newTopic(t, "g"), c
}

// fetched checks that the owner s is told of these messages and can fetch them.
func fetched(t testing.TB, ctx context.Context, s *source, o *parkingObserver, want []string) {
	t.Helper()
	if got := fetchIDs(t, ctx, s, o.told(t, ctx, len(want))); !slices.Equal(got, want) {
		t.Errorf("fetched %d messages %.200v, want %.200v", len(got), got, want)
	}
}

// nextOwner closes s, and checks what the next owner is told of and can fetch.
func nextOwner(t testing.TB, ctx context.Context, s *source, d *busDriver, topic string, want []string) {
	t.Helper()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	next, o := parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 1)
	fetched(t, ctx, next, o, want)
}

// probed waits until the lanes' owner knows the delivery limit: until then, the broker delivers its
// probe again and again.
func probed(t testing.TB, ctx context.Context, s *source) {
	t.Helper()
	for _, l := range s.lanes {
		waitParking(t, ctx, l, "the end of the probe", func(p *parking) bool { return l.probed.Load() && p.probing.sent.IsZero() })
	}
}

// waitParking waits until holds reports true of the lane's parking, which it gets locked.
func waitParking(t testing.TB, ctx context.Context, l *lane, what string, holds func(*parking) bool) {
	t.Helper()
	for {
		p := l.current.Load().parking()
		p.mu.Lock()
		done := holds(p)
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("waited in vain for ", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// parkOne publishes a message, and parks it.
func parkOne(t testing.TB, ctx context.Context, d *busDriver, s *source, topic string, m *bus.Message) driver.Parking {
	t.Helper()
	publish(t, d, topic, m)
	ps := parkAll(receive(t, ctx, s, 1))
	if err := s.Park(ctx, ps); err != nil {
		t.Fatal(err)
	}
	return ps[0]
}

// An owner dies after the result of a command was stored, and before it has removed the command.
// The next owner does not carry the command out again.
func TestOwnerDiesOverACommand(t *testing.T) {
	ctx := testContext(t)
	p, c := newProxy(t)
	topic, c := oneLane(t, c)
	direct := openDriver(t, brokerConfig(t))
	s, o := parkingSource(t, openDriver(t, c), topic)
	o.waitLanes(t, ctx, 1)
	probed(t, ctx, s)
	p.mute(parkedName(groupName(topic, "g"), 0))
	injectAll(t, direct, topic, messages(0, 1, 1)...)
	p.wait(t, ctx, "the confirm of the result", func() bool { return p.silent > 0 })
	p.Refuse(true)
	next, o := parkingSource(t, direct, topic)
	o.waitLanes(t, ctx, 1)
	injectAll(t, direct, topic, messages(1, 2, 1)...) // is carried out behind the first
	fetched(t, ctx, next, o, wantIDs(0, 2))
	nextOwner(t, ctx, next, direct, topic, wantIDs(0, 2))
}

// Former owners have carried out a command, each for itself. The message is parked once, whether
// their records come early or late.
func TestCommandOfManyOwners(t *testing.T) {
	ctx := testContext(t)
	topic, c := oneLane(t, brokerConfig(t))
	d := openDriver(t, c)
	s, _ := parkingSource(t, d, topic)
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	ms := messages(0, 3, 1)
	put(t, d, topic, record(t, ms[0], 10, 1, "c"), record(t, ms[0], 11, 1, "c"), command(t, ms[0], "c"))
	s, o := parkingSource(t, d, topic)
	o.told(t, ctx, 1)
	put(t, d, topic, command(t, ms[1], "d"))
	o.told(t, ctx, 2) // it was carried out, and its result stored
	put(t, d, topic, record(t, ms[0], 12, 1, "c"), record(t, ms[1], 13, 1, "d"), command(t, ms[2], "e"))
	fetched(t, ctx, s, o, wantIDs(0, 3))
	nextOwner(t, ctx, s, d, topic, wantIDs(0, 3))
}

// A former owner's record of a command comes late: this owner is about to store its own. The
// message is parked once.
func TestLateRecordOfAWaitingCommand(t *testing.T) {
	ctx := testContext(t)
	p, c := newProxy(t)
	topic, c := oneLane(t, c)
	d, direct := openDriver(t, c), openDriver(t, brokerConfig(t))
	s, o := parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 1)
	probed(t, ctx, s)
	session := d.pub.link.Current()
	p.block(t, session, "low on memory")
	ms := messages(0, 2, 1)
	put(t, direct, topic, command(t, ms[0], "c"))
	waitParking(t, ctx, s.lanes[0], "the command's beginning", func(p *parking) bool { return len(p.entries) > 0 })
	put(t, direct, topic, record(t, ms[0], 10, 1, "c"), record(t, ms[1], 11, 1, ""))
	o.told(t, ctx, 1) // of the last
	p.unblock(session)
	fetched(t, ctx, s, o, wantIDs(0, 2))
	nextOwner(t, ctx, s, direct, topic, wantIDs(0, 2))
}

// A command that its owner can never carry out stays, however often the owner gives it back.
// Another owner carries it out.
func TestCommandThatCannotBeCarriedOut(t *testing.T) {
	ctx := testContext(t)
	topic, c := oneLane(t, brokerConfig(t))
	direct := openDriver(t, c)
	c.MaxMessage = 64 << 10
	s, o := parkingSource(t, openDriver(t, c), topic)
	o.waitLanes(t, ctx, 1)
	m := messages(0, 1, 1)[0]
	m.Payload = make([]byte, c.MaxMessage+storedRoom+1)
	put(t, direct, topic, command(t, m, "c"))
	lane := s.lanes[0]
	since := time.Now()
	for range 2 {
		waitParking(t, ctx, lane, "the command", func(p *parking) bool {
			return slices.ContainsFunc(slices.Collect(maps.Values(p.strangers)), func(x stranger) bool { return x.since.After(since) })
		})
		since = time.Now()
		p := lane.current.Load().parking()
		p.refresh(since.Add(p.bounds.refresh))
	}
	nextOwner(t, ctx, s, direct, topic, wantIDs(0, 1))
}

// A former owner has written a record of a message a moment too late: the message is settled. It
// does not come again.
func TestLateRecordOfASettledMessage(t *testing.T) {
	ctx := testContext(t)
	topic, c := oneLane(t, brokerConfig(t))
	d := openDriver(t, c)
	s, o := parkingSource(t, d, topic)
	ms := messages(0, 2, 1)
	at := parkOne(t, ctx, d, s, topic, ms[0])
	if err := s.Settle(ctx, []bus.Token{at.Token}); err != nil {
		t.Fatal(err)
	}
	put(t, d, topic, record(t, ms[0], at.Position, 2, ""), command(t, ms[1], "c"))
	fetched(t, ctx, s, o, wantIDs(1, 2))
	nextOwner(t, ctx, s, d, topic, wantIDs(1, 2))
}

// A message is settled while the broker delivers its record again. It does not come again, however
// long ago the owner took the lane. Settled messages are forgotten when nothing of them can come.
func TestSettledOnItsWay(t *testing.T) {
	ctx := testContext(t)
	p, c := newProxy(t)
	topic, c := oneLane(t, c)
	d := openDriver(t, c)
	d.parking.refresh, d.parking.tick = time.Second, time.Hour
	s, o := parkingSource(t, d, topic)
	ms := messages(0, 3, 1)
	at, here := parkOne(t, ctx, d, s, topic, ms[0]), parkOne(t, ctx, d, s, topic, ms[1])
	fetchIDs(t, ctx, s, []driver.Parked{{Token: at.Token}, {Token: here.Token}}) // both are here
	probed(t, ctx, s)
	queue, parking := parkedName(groupName(topic, "g"), 0), s.lanes[0].current.Load().parking()
	remembered := func(want int) {
		t.Helper()
		parking.mu.Lock()
		defer parking.mu.Unlock()
		if n := len(parking.settled); n != want {
			t.Errorf("%d settled messages are remembered, want %d", n, want)
		}
	}
	if err := s.Settle(ctx, []bus.Token{here.Token}); err != nil {
		t.Fatal(err)
	}
	p.hold(consumes)
	before := p.deliveries(queue)
	parking.refresh(time.Now().Add(parking.bounds.refresh))
	if err := s.Settle(ctx, []bus.Token{at.Token}); err != nil {
		t.Fatal(err)
	}
	remembered(2)
	parking.mu.Lock()
	parking.loaded = parking.loaded.Add(-2 * settledFor)
	parking.mu.Unlock()
	parking.refresh(time.Now())
	remembered(1)
	p.wait(t, ctx, "the record", func() bool { return p.given[queue] == before+1 })
	p.release(t, d)
	put(t, d, topic, command(t, ms[2], "c"))
	fetched(t, ctx, s, o, wantIDs(2, 3))
	remembered(0)
	nextOwner(t, ctx, s, d, topic, wantIDs(2, 3))
}

// Fetch returns the newest stored revision of a message, though an older one may come before it.
func TestFetchWhileANewRevisionComes(t *testing.T) {
	for _, c := range []struct {
		name  string
		early bool // Fetch begins before the new revision is stored
	}{{"fetched before", true}, {"fetched after", false}} {
		t.Run(c.name, func(t *testing.T) {
			ctx := testContext(t)
			p, cfg := newProxy(t)
			topic, cfg := oneLane(t, cfg)
			d := openDriver(t, cfg)
			s, _ := parkingSource(t, d, topic)
			ps := []driver.Parking{parkOne(t, ctx, d, s, topic, messages(0, 1, 1)[0])}
			fetchIDs(t, ctx, s, []driver.Parked{{Token: ps[0].Token}}) // the first revision is here
			probed(t, ctx, s)
			queue := parkedName(groupName(topic, "g"), 0)
			p.hold(consumes)
			before := p.deliveries(queue)
			p.count()
			fetched := make(chan bus.Delivery, 1)
			fetch := func() {
				dst := make([]bus.Delivery, 1)
				if n, err := s.Fetch(ctx, []bus.Token{ps[0].Token}, dst); n != 1 || err != nil {
					t.Errorf("fetched %d, %v", n, err)
				}
				fetched <- dst[0]
			}
			if c.early {
				go fetch()
				p.wait(t, ctx, "the first revision", func() bool { return p.given[queue] == before+1 })
				before++
			}
			ps[0].Attempt = 7
			if err := s.Park(ctx, slices.Clone(ps)); err != nil {
				t.Fatal(err)
			}
			p.wait(t, ctx, "the second revision", func() bool { return p.given[queue] == before+1 })
			if !c.early {
				go fetch()
				waitParking(t, ctx, s.lanes[0], "Fetch", func(p *parking) bool { return p.entries[ps[0].Position].wanted != nil })
			}
			p.release(t, d)
			if got := <-fetched; got.Attempt != 7 {
				t.Errorf("fetched try %d", got.Attempt)
			}
			want := 0
			if c.early {
				want = 1
			}
			if n := p.count()[basicNack]; n != want {
				t.Errorf("%d records were given back, want %d", n, want)
			}
		})
	}
}

// A position of a former owner whose clock was ahead comes before all later ones.
func TestPositionsOfAClockAhead(t *testing.T) {
	ctx := testContext(t)
	topic, c := oneLane(t, brokerConfig(t))
	d := openDriver(t, c)
	s, _ := parkingSource(t, d, topic)
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	ahead := time.Now().Add(time.Hour).UnixNano()
	put(t, d, topic, record(t, message("a", ""), ahead, 1, ""), record(t, message("b", ""), 10, 1, ""))
	s, o := parkingSource(t, d, topic)
	o.told(t, ctx, 2)
	if at := parkOne(t, ctx, d, s, topic, message("c", "")); at.Position <= ahead {
		t.Errorf("parked at %d, behind %d", at.Position, ahead)
	}
}

// A record that was given back to look behind it comes again at once if the queue has a delivery
// limit. Then a copy goes behind the others, once.
func TestRotatedRecordsAreCopied(t *testing.T) {
	ctx := testContext(t)
	p, c := newProxy(t)
	topic, c := oneLane(t, c)
	d := openDriver(t, c)
	const window = 8
	d.parking.window, d.parking.tick = window, time.Hour
	queue := parkedName(groupName(topic, "g"), 0)
	limitQueue(t, d, queue, 20)
	s, o := parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 1)
	probed(t, ctx, s)
	injectAll(t, d, topic, messages(0, window, 1)...)
	told := o.told(t, ctx, window)
	held := func() {
		t.Helper()
		waitParking(t, ctx, s.lanes[0], "the records", func(p *parking) bool {
			n := 0
			for _, e := range p.entries {
				if e.tag != 0 && !e.copying && e.coming == 0 {
					n++
				}
			}
			return n == window
		})
	}
	held()
	p.count()
	rotated := s.lanes[0].current.Load().parking().rotate(true)
	if rotated == 0 {
		t.Fatal("nothing was given back")
	}
	p.wait(t, ctx, "the copies", func() bool { return p.sent[basicPublish] == rotated })
	held()
	if got := fetchIDs(t, ctx, s, told); !slices.Equal(got, wantIDs(0, window)) {
		t.Errorf("fetched %v", got)
	}
	held()
	if n := p.count()[basicPublish]; n != rotated {
		t.Errorf("%d records were written for %d that were given back", n, rotated)
	}
}
