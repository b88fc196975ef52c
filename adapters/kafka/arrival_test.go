package kafka_test

import (
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
)

// TestOneLaneCannotBegin: a lane that cannot be read holds up no other one, and comes whole when it
// can.
func TestOneLaneCannotBegin(t *testing.T) {
	parkingOf := parkingTopic("t", "g")
	for name, fault := range map[string]kfake.Fault{
		"the end of its parking log is not known": {Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: parkingOf, Err: kerr.LeaderNotAvailable},
		"its parking log is not read":             {Keys: []kmsg.Key{kmsg.Fetch}, Topic: parkingOf, Err: kerr.KafkaStorageError},
		"its beginning is not known":              {Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "t", Err: kerr.LeaderNotAvailable},
	} {
		t.Run(name, func(t *testing.T) {
			c := fakeCluster(t)
			b := open(t, fakeConfig(c))
			publish(t, b, "t", spread(8)...)
			late := ofLane(t, b, 1)
			group, parked := "new", 0
			if fault.Topic == parkingOf {
				group, parked = "g", 8
				s, _ := parking(t, b, "t", group)
				if err := s.Park(within(t), parkAll(receive(t, s, 8))); err != nil {
					t.Fatal(err)
				}
				closeSource(t, s)
				publish(t, b, "t", spread(8)...)
			}
			fault.Partitions, fault.Count = []int32{1}, -1
			away := c.Fault(fault)
			s, o := parking(t, b, "t", group)
			o.until(t, "all other lanes are assigned", owns(3))
			var got []string
			for _, d := range insistent(t, s, 8-late) {
				if d.Lane == 1 {
					t.Errorf("received %q of the lane that cannot begin", d.Payload)
				}
				got = append(got, string(d.Payload))
			}
			away.Remove()
			o.until(t, "the last lane is assigned", owns(4))
			got = append(got, payloads(insistent(t, s, late))...)
			if got = sorted(got); !slices.Equal(got, []string{"a", "b", "c", "d", "e", "f", "g", "h"}) {
				t.Errorf("received %v", got)
			}
			if parked > 0 {
				if got := sorted(fetched(t, s, o.told(t, parked))); !slices.Equal(got, []string{"a", "b", "c", "d", "e", "f", "g", "h"}) {
					t.Errorf("parked are %v", got)
				}
			}
		})
	}
}

// TestLaneThatCannotBeginGoes: a lane that was never begun is handed over like any other.
func TestLaneThatCannotBeginGoes(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	publish(t, b, "t", spread(8)...)
	away := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "t", Partitions: []int32{1}, Err: kerr.LeaderNotAvailable, Count: -1})
	s, one := parking(t, b, "t", "g")
	one.until(t, "all other lanes are assigned", owns(3))
	next, two := parking(t, b, "t", "g")
	two.until(t, "the lanes are shared", func(o *observer) bool { return len(o.owned) > 0 })
	closeSource(t, s)
	two.until(t, "the second has all other lanes", owns(3))
	away.Remove()
	two.until(t, "the last lane is assigned", owns(4))
	if got := sorted(payloads(insistent(t, next, 8))); !slices.Equal(got, []string{"a", "b", "c", "d", "e", "f", "g", "h"}) {
		t.Errorf("received %v", got)
	}
	if len(one.lost) > 0 {
		t.Errorf("the first lost %v", one.lost)
	}
}

// insistent receives n messages, whatever Receive reports.
func insistent(tb testing.TB, s bus.Source, n int) []bus.Delivery {
	tb.Helper()
	ds, _ := insistently(tb, s, n)
	return ds
}

// ofLane counts the messages of a lane in a topic of eight.
func ofLane(tb testing.TB, b *bus.Bus, lane int32) (n int) {
	tb.Helper()
	s := subscribe(tb, b, "t", name("counting"), bus.Earliest, newObserver())
	for _, d := range receive(tb, s, 8) {
		if d.Lane == lane {
			n++
		}
	}
	closeSource(tb, s)
	return n
}
