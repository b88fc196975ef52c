package kafka_test

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
)

// TestNothingIsHeard: while a parking log cannot be looked at, Receive says that no replay of its lane comes.
func TestNothingIsHeard(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	publish(t, b, "t", texts("a")...)
	s, _ := parking(t, b, "t", "g")
	ds := receive(t, s, 1)
	if err := s.Park(within(t), parkAll(ds)); err != nil {
		t.Fatal(err)
	}
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: parkingTopic("t", "g"), Partitions: []int32{ds[0].Lane}, Err: kerr.NotLeaderForPartition, Count: -1})
	if n, err := s.Receive(within(t), make([]bus.Delivery, 1), 1000); n != 0 || !errors.Is(err, kerr.NotLeaderForPartition) {
		t.Errorf("%d, %v", n, err)
	}
}
