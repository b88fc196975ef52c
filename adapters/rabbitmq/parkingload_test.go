package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func injectAll(t testing.TB, d *busDriver, topic string, ms ...*bus.Message) {
	t.Helper()
	var ps []driver.Parking
	for _, m := range ms {
		ps = append(ps, driver.Parking{Delayed: true, Due: time.Now().Add(time.Hour), Delivery: bus.Delivery{Message: m}})
	}
	if err := d.Inject(testContext(t), topic, "g", ps); err != nil {
		t.Fatal(err)
	}
}

// More records than the broker delivers at a time can be fetched, each of them, and go to the next
// owner.
func TestMoreThanTheWindow(t *testing.T) {
	for _, limit := range []int64{0, 20} {
		t.Run(fmt.Sprintf("limit %d", limit), func(t *testing.T) {
			ctx := testContext(t)
			topic := newTopic(t, "g")
			c := brokerConfig(t)
			c.Lanes = 1
			d := openDriver(t, c)
			d.parking.window, d.parking.tick = 40, 5*time.Millisecond
			if limit > 0 {
				limitQueue(t, d, parkedName(groupName(topic, "g"), 0), limit)
			}
			s, o := parkingSource(t, d, topic)
			o.waitLanes(t, ctx, 1)
			const total = 90
			injectAll(t, d, topic, messages(0, total, total)...)
			if got := fetchIDs(t, ctx, s, o.told(t, ctx, total)); !slices.Equal(got, wantIDs(0, total)) {
				t.Errorf("fetched %v", got)
			}
			if err := s.Close(ctx); err != nil {
				t.Fatal(err)
			}
			s, o = parkingSource(t, d, topic)
			var got []string
			for seen := 0; seen < total; {
				o.wait(t, ctx, fmt.Sprintf("more than %d", seen), func() bool { return len(o.parked) > seen })
				o.mu.Lock()
				told := slices.Clone(o.parked[seen:])
				o.mu.Unlock()
				seen += len(told)
				got = append(got, fetchIDs(t, ctx, s, told)...)
				var ts []bus.Token
				for _, p := range told {
					ts = append(ts, p.Token)
				}
				if err := s.Settle(ctx, ts); err != nil {
					t.Fatal(err)
				}
			}
			if slices.Sort(got); !slices.Equal(got, wantIDs(0, total)) {
				t.Errorf("the next owner fetched %v", got)
			}
		})
	}
}

// However slowly the parked messages come, the lane starts when all of them have come.
func TestSlowLoad(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	cfg := brokerConfig(t)
	cfg.Lanes = 1
	direct := openDriver(t, cfg)
	s, _ := parkingSource(t, direct, topic)
	ms := messages(0, 100, 100)
	for _, m := range ms {
		m.Payload = make([]byte, 8<<10)
	}
	publish(t, direct, topic, ms...)
	if err := s.Park(ctx, parkAll(receive(t, ctx, s, 100))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	p, c := newProxy(t)
	d := openDriver(t, c)
	d.parking.marker = 60 * time.Millisecond
	p.Delay(40 * time.Millisecond) // a second in all
	next, o := parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 1)
	p.Delay(0)
	if got := fetchIDs(t, ctx, next, o.told(t, ctx, 100)); !slices.Equal(got, wantIDs(0, 100)) {
		t.Errorf("fetched %v", got)
	}
}

// An owner that cannot have its marker says why.
func TestLoadWithoutMarker(t *testing.T) {
	c, err := Config{Hosts: []string{"localhost:1"}}.complete()
	if err != nil {
		t.Fatal(err)
	}
	l := amqplink.New(c.link(), "publish")
	l.Stop()
	src := &source{d: &busDriver{pub: newPublisher(c, l)}}
	p := newParking(&lane{source: src}, bus.Lane{}, parkingBounds{marker: time.Millisecond})
	first := amqplink.Start(func() (struct{}, error) { return struct{}{}, nil })
	if _, err := p.load(testContext(t), first); !errors.Is(err, errNotLoaded) || !errors.Is(err, bus.ErrClosed) {
		t.Error(err)
	}
}

// While the broker blocks publishers, commands that wait keep no lane from starting; they are
// carried out afterwards.
func TestCommandsWhileBlocked(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	direct := openDriver(t, brokerConfig(t))
	s, o := parkingSource(t, direct, topic)
	o.waitLanes(t, ctx, DefaultLanes)
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	injectAll(t, direct, topic, messages(0, 20, 20)...)
	publish(t, direct, topic, ends("")...)
	p, c := newProxy(t)
	d := openDriver(t, c)
	session := d.pub.link.Current()
	p.block(t, session, "low on memory")
	next, o := parkingSource(t, d, topic)
	receive(t, ctx, next, slots)
	o.mu.Lock()
	if len(o.parked) > 0 {
		t.Errorf("told of %d parked messages that are not stored", len(o.parked))
	}
	o.mu.Unlock()
	p.unblock(session)
	if got := fetchIDs(t, ctx, next, o.told(t, ctx, 20)); !slices.Equal(got, wantIDs(0, 20)) {
		t.Errorf("fetched %v", got)
	}
}

// A queue in which very much waits takes no commands.
func TestInjectIntoAFullQueue(t *testing.T) {
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	s, _ := parkingSource(t, d, topic)
	if err := s.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	name := parkedName(groupName(topic, "g"), 0)
	if err := d.pub.send(testContext(t), 3, func(_ int, x *amqplink.Parcel) error {
		x.Key, x.Publishing = name, amqp.Publishing{Headers: amqp.Table{parkHeader: "x"}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for most, want := range map[int]bool{3: false, 4: true} {
		_, err := call(testContext(t), d.pub.link.Current(), func(_ context.Context, tp *topology) (struct{}, error) {
			return struct{}{}, tp.haveRoom(map[string]bool{name: true, parkedName(groupName(topic, "g"), 1): true}, most)
		})
		if got := err == nil; got != want || err != nil && !amqplink.Retryable(err) {
			t.Errorf("at most %d: %v", most, err)
		}
	}
}
