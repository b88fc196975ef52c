package kafka_test

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestNothingIsHeard: while a parking log cannot be looked at, the observer is told that no replay of its lane comes.
func TestNothingIsHeard(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	publish(t, b, "t", texts("a")...)
	s, o := parking(t, b, "t", "g")
	ds := receive(t, s, 1)
	if err := s.Park(within(t), parkAll(ds)); err != nil {
		t.Fatal(err)
	}
	fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: parkingTopic("t", "g"), Partitions: []int32{ds[0].Lane}, Err: kerr.NotLeaderForPartition, Count: -1})
	if err := o.toldOf(t, "other commands for partition"); !errors.Is(err, kerr.NotLeaderForPartition) {
		t.Error(err)
	}
	fault.Remove()
	o.untilWell(t)
}
