package rabbitmq

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// limitQueue makes a queue as another version did, or as a policy changes it: the broker drops a
// message that it takes back more than limit times.
func limitQueue(t testing.TB, d *busDriver, name string, limit int64) {
	t.Helper()
	_, err := call(testContext(t), d.pub.link.Current(), func(_ context.Context, tp *topology) (struct{}, error) {
		return struct{}{}, tp.declareQueue(name, amqp.Table{amqp.QueueTypeArg: Quorum, amqp.SingleActiveConsumerArg: true, "x-delivery-limit": limit})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Parked messages outlive any number of hand-overs, though each counts against the queue's delivery
// limit.
func TestParkedOutlivesHandOvers(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 1
	d := openDriver(t, c)
	limitQueue(t, d, parkedName(groupName(topic, "g"), 0), 5)
	s, _ := parkingSource(t, d, topic)
	publish(t, d, topic, messages(0, 20, 20)...)
	if err := s.Park(ctx, parkAll(receive(t, ctx, s, 20))); err != nil {
		t.Fatal(err)
	}
	for range 12 {
		if err := s.Close(ctx); err != nil {
			t.Fatal(err)
		}
		var o *parkingObserver
		s, o = parkingSource(t, d, topic)
		o.waitLanes(t, ctx, 1)
		if got := fetchIDs(t, ctx, s, o.told(t, ctx, 20)); !slices.Equal(got, wantIDs(0, 20)) {
			t.Fatalf("fetched %v", got)
		}
	}
}

// Parked messages outlive any number of refreshes.
func TestParkedOutlivesRefreshes(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 1
	d := openDriver(t, c)
	limitQueue(t, d, parkedName(groupName(topic, "g"), 0), 5)
	s, _ := parkingSource(t, d, topic)
	publish(t, d, topic, messages(0, 20, 20)...)
	ps := parkAll(receive(t, ctx, s, 20))
	if err := s.Park(ctx, ps); err != nil {
		t.Fatal(err)
	}
	var told []driver.Parked
	for _, p := range ps {
		told = append(told, driver.Parked{Token: p.Token})
	}
	p := s.lanes[0].current.Load().parking()
	for range 12 {
		refreshAll(t, ctx, p)
		if got := fetchIDs(t, ctx, s, told); !slices.Equal(got, wantIDs(0, 20)) {
			t.Fatalf("fetched %v", got)
		}
	}
	// A copy that is written while its message is settled does not come back.
	var ts []bus.Token
	for _, p := range ps[5:] {
		ts = append(ts, p.Token)
	}
	p.refresh(time.Now().Add(p.bounds.refresh))
	if err := s.Settle(ctx, ts); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	next, o := parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 1)
	if got := fetchIDs(t, ctx, next, o.told(t, ctx, 5)); len(got) != 5 {
		t.Errorf("fetched %v", got)
	}
}

// Owners may give a message back again and again, as when their process crashes over another
// message. It is parked before its lane's queue drops it.
func TestLaneOutlivesCrashes(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 1
	d := openDriver(t, c)
	limitQueue(t, d, laneName(groupName(topic, "g"), 0), minLimit)
	s, _ := parkingSource(t, d, topic)
	publish(t, d, topic, messages(0, 3, 1)...)
	receive(t, ctx, s, 3)
	for n := 1; n < 2*minLimit; n++ {
		if err := s.Close(ctx); err != nil {
			t.Fatal(err)
		}
		var o *parkingObserver
		s, o = parkingSource(t, d, topic)
		if n < maxLaneReturns {
			receive(t, ctx, s, 3)
		} else if got := fetchIDs(t, ctx, s, o.told(t, ctx, 3)); !slices.Equal(got, wantIDs(0, 3)) {
			t.Fatalf("fetched %v", got)
		}
	}
}

// A limit under which nothing can be promised is told, with how to mend it. A sufficient limit, or
// none, is not told of.
func TestLimitTooLow(t *testing.T) {
	for _, c := range []struct {
		limit int64
		low   bool
	}{{minLimit - 1, true}, {minLimit, false}, {0, true}} {
		ctx := testContext(t)
		topic := newTopic(t, "g")
		cfg := brokerConfig(t)
		cfg.Lanes = 1
		d := openDriver(t, cfg)
		d.parking.probe, d.parking.tick = 100*time.Millisecond, 10*time.Millisecond
		limitQueue(t, d, parkedName(groupName(topic, "g"), 0), c.limit)
		s, o := parkingSource(t, d, topic)
		o.waitLanes(t, ctx, 1)
		l := s.lanes[0]
		probed(t, ctx, s)
		if !c.low {
			if l.limited.Load() != nil {
				t.Errorf("limit %d: %v", c.limit, *l.limited.Load())
			}
			continue
		}
		if err := o.toldOf(t, ctx, "parked messages may be lost"); !errors.Is(err, bus.ErrUnsupported) || bus.IsRetryable(err) {
			t.Errorf("limit %d: %v", c.limit, err)
		}
	}
}

// Queues are made without a limit if the server has a limit for queues that say nothing, and
// understands "none".
func TestUnlimited(t *testing.T) {
	for version, want := range map[string]any{"3.10.8": nil, "3.13.7": nil, "4.0.5": int64(-1), "4.3.6": int64(-1), "10.0.0": int64(-1), "": nil} {
		server := amqp.Table{"version": version}
		for _, queue := range []string{Quorum, Classic} {
			want := want
			if queue == Classic {
				want = nil
			}
			for _, args := range []amqp.Table{laneArgs(queue, server), unroutedArgs(Config{Queue: queue, Unrouted: 1}, server)} {
				if got := args["x-delivery-limit"]; got != want {
					t.Errorf("RabbitMQ %s: %v", version, args)
				}
			}
		}
	}
}
