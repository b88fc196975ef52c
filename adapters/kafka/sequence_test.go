package kafka_test

import (
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestPublishedAfterATopicWasUnknown: a topic that brokers did not know for a while is the same as
// before. Messages acknowledged afterwards are in the log.
func TestPublishedAfterATopicWasUnknown(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", texts("a")...)
	f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "t", Err: kerr.UnknownTopicOrPartition, Count: 10})
	ctx := within(t)
	for err := f.bus.PublishMessages(ctx, "t", texts("b")...); err != nil; err = f.bus.PublishMessages(ctx, "t", texts("b")...) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	publish(t, f.bus, "t", texts("c")...)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	if got := payloads(receive(t, s, 3)); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("published are %v", got)
	}
}

// TestParkedAfterTheTopicHasGrown: messages parked in a partition from before the
// growth are in the log.
func TestParkedAfterTheTopicHasGrown(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		c.Partitions = 1
		c.Client = []kgo.Opt{kgo.MetadataMaxAge(time.Second)} // how soon new partitions are seen
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, texts("a", "b")...)
		s, o := parking(t, b, topic, group)
		ps := parkAll(receive(t, s, 2))
		if err := s.Park(within(t), ps[:1]); err != nil {
			t.Fatal(err)
		}
		client, _ := bus.As[*kgo.Client](b)
		if _, err := kadm.NewClient(client).CreatePartitions(within(t), 1, topic); err != nil {
			t.Fatal(err)
		}
		o.until(t, "the new partition is assigned", owns(2))
		produce(t, c, &kgo.Record{Topic: topic, Partition: 1, Value: []byte("c")})
		if err := s.Park(within(t), parkAll(receive(t, s, 1))); err != nil {
			t.Fatal(err)
		}
		if err := s.Park(within(t), ps[1:]); err != nil {
			t.Fatal(err)
		}
		closeSource(t, s)
		s, o = parking(t, b, topic, group)
		if got := sorted(fetched(t, s, o.told(t, 3))); !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Errorf("parked are %v", got)
		}
	})
}

// TestParkedAfterTheTopicWasUnknown: as above, of a parking topic.
func TestParkedAfterTheTopicWasUnknown(t *testing.T) {
	inEachGuarantee(t, func(t *testing.T, subscribe func(b *bus.Bus, topic, group string) (driver.ParkingSource, *parkingObserver)) {
		c := fakeCluster(t)
		b := open(t, fakeConfig(c))
		publish(t, b, "t", texts("a", "b", "c")...)
		s, _ := subscribe(b, "t", "g")
		ps := parkAll(receive(t, s, 3))
		if err := s.Park(within(t), ps[:1]); err != nil {
			t.Fatal(err)
		}
		c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: parkingTopic("t", "g"), Err: kerr.UnknownTopicOrPartition, Count: 10})
		ctx := within(t)
		for err := s.Park(ctx, ps[1:2]); err != nil; err = s.Park(ctx, ps[1:2]) {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
		if err := s.Park(within(t), ps[2:]); err != nil {
			t.Fatal(err)
		}
		closeSource(t, s)
		s, o := subscribe(b, "t", "g")
		if got := fetched(t, s, o.told(t, 3)); !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Errorf("parked are %v", got)
		}
	})
}
