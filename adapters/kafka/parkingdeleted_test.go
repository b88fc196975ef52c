package kafka_test

import (
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestParkingTopicDeletedExactlyOnce: the parking topic is made again for sources with
// transactions, too. Messages that were parked there can be settled.
func TestParkingTopicDeletedExactlyOnce(t *testing.T) {
	c := fakeCluster(t)
	config := fakeConfig(c)
	config.PublishTimeout = time.Second
	b := open(t, config)
	onePartition(t, b, "out")
	publish(t, b, "t", texts("a", "b", "c")...)
	s, _ := transactional(t, b, "t", "g")
	ps := parkAll(receive(t, s, 3))
	if err := s.(driver.ParkingSource).Park(within(t), ps[:1]); err != nil {
		t.Fatal(err)
	}
	gone := func() {
		t.Helper()
		if err := c.DeleteTopic(parkingTopic("t", "g")); err != nil {
			t.Fatal(err)
		}
	}
	ctx := within(t)
	gone()
	for err := s.(driver.ParkingSource).Park(ctx, ps[1:2]); err != nil; err = s.(driver.ParkingSource).Park(ctx, ps[1:2]) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	gone()
	done := []driver.Settlement{{Token: ps[1].Token, Outputs: output("out", "B")}}
	for err := s.SettleWith(ctx, done); err != nil; err = s.SettleWith(ctx, done) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// TestInjectAfterParkingTopicDeleted: a command injected into a parking topic that was made anew is
// heard, even if the former topic was longer. Messages parked since are found.
func TestInjectAfterParkingTopicDeleted(t *testing.T) {
	c := fakeCluster(t)
	config := fakeConfig(c)
	config.PublishTimeout = time.Second
	b := open(t, config)
	publish(t, b, "t", texts("a", "b", "c", "d")...)
	s, o := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 4))
	if err := s.Park(within(t), ps[:3]); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteTopic(parkingTopic("t", "g")); err != nil {
		t.Fatal(err)
	}
	injector, _ := bus.As[driver.Injector](b)
	ctx := within(t)
	m := &bus.Message{ID: "1", Key: "k", Payload: []byte("injected")}
	injected := []driver.Parking{{Delivery: bus.Delivery{Message: m}, Due: time.Now().Add(time.Hour)}}
	for err := injector.Inject(ctx, "t", "g", injected); err != nil; err = injector.Inject(ctx, "t", "g", injected) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	if err := s.Park(within(t), ps[3:]); err != nil {
		t.Fatal(err)
	}
	told := o.told(t, 1)
	tokens := append([]driver.Parked{{Token: ps[0].Token}, {Token: ps[3].Token}}, told...)
	if got := fetched(t, s, tokens); !slices.Equal(got, []string{"d", "injected"}) {
		t.Errorf("parked are %v", got)
	}
	closeSource(t, s)
	s, o = parking(t, b, "t", "g")
	if got := sorted(fetched(t, s, o.told(t, 2))); !slices.Equal(got, []string{"d", "injected"}) {
		t.Errorf("the next owner fetched %v", got)
	}
}

// TestOneLaneHoldsUpNoOther: while the parking log of one lane cannot be written to, commands
// injected into the others are heard.
func TestOneLaneHoldsUpNoOther(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	publish(t, b, "t", spread(8)...)
	s, o := parking(t, b, "t", "g")
	ds := receive(t, s, 8)
	ps := parkAll(ds)
	if err := s.Park(within(t), ps); err != nil {
		t.Fatal(err)
	}
	injector, _ := bus.As[driver.Injector](b)
	replaced := make([]driver.Parking, len(ps))
	for i := range ps {
		replaced[i] = ps[i]
		replaced[i].Due = time.Now().Add(2 * time.Hour)
	}
	bad := ps[0].Lane
	good := slices.DeleteFunc(slices.Clone(replaced), func(p driver.Parking) bool { return p.Lane == bad })
	if err := injector.Inject(within(t), "t", "g", slices.DeleteFunc(replaced, func(p driver.Parking) bool { return p.Lane != bad })); err != nil {
		t.Fatal(err)
	}
	away := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: parkingTopic("t", "g"), Partitions: []int32{bad}, Err: kerr.NotEnoughReplicas, Count: -1})
	if err := away.Wait(within(t), 1); err != nil { // the listener is at it
		t.Fatal(err)
	}
	if err := injector.Inject(within(t), "t", "g", good); err != nil {
		t.Fatal(err)
	}
	for _, p := range o.told(t, len(good)) {
		if p.Token.Lane == bad {
			t.Errorf("told of %+v, which could not be written", p)
		}
	}
	away.Remove()
	o.told(t, 8)
}

// TestParkingLogTruncated: commands behind records that were deleted are heard.
func TestParkingLogTruncated(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	publish(t, b, "t", texts("a", "b")...)
	s, o := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 2))
	if err := s.Park(within(t), ps[:1]); err != nil {
		t.Fatal(err)
	}
	away := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: parkingTopic("t", "g"), Err: kerr.LeaderNotAvailable, Count: -1})
	injector, _ := bus.As[driver.Injector](b)
	inject := func(text string) {
		t.Helper()
		p := driver.Parking{Delivery: bus.Delivery{Message: &bus.Message{ID: text, Key: "k", Payload: []byte(text)}}, Due: time.Now().Add(time.Hour)}
		if err := injector.Inject(within(t), "t", "g", []driver.Parking{p}); err != nil {
			t.Fatal(err)
		}
	}
	inject("deleted")
	inject("kept")
	if err := c.DeleteRecords(parkingTopic("t", "g"), ps[0].Lane, 2); err != nil {
		t.Fatal(err)
	}
	away.Remove()
	if got := fetched(t, s, o.told(t, 1)); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("told of %v", got)
	}
}
