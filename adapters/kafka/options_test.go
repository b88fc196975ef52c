package kafka_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestCallersOptions: the caller's options for the native clients do not touch the options that
// settling and parking rest on. Outputs go to the partitions that the caller's partitioner chooses.
func TestCallersOptions(t *testing.T) {
	c := fakeCluster(t)
	config := fakeConfig(c)
	config.Client = []kgo.Opt{
		kgo.RecordPartitioner(kgo.BasicConsistentPartitioner(func(string) func(*kgo.Record, int) int {
			return func(*kgo.Record, int) int { return 3 }
		})),
		kgo.MaxVersions(kversion.Stable()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
		kgo.FetchIsolationLevel(kgo.ReadUncommitted()),
	}
	b, plain := open(t, config), open(t, fakeConfig(c))
	onePartition(t, plain, "in")
	publish(t, plain, "in", texts("a", "b")...)
	publish(t, b, "out", texts("published")...)
	s, _ := transactional(t, b, "in", "g")
	ds := receive(t, s, 2)
	ps := parkAll(ds[1:])
	if err := s.(driver.ParkingSource).Park(within(t), ps); err != nil {
		t.Fatal(err)
	}
	if err := s.SettleWith(within(t), []driver.Settlement{{Token: ds[0].Token, Outputs: output("out", "output")}}); err != nil {
		t.Fatal(err)
	}
	closeSource(t, s)
	s, o := transactional(t, plain, "in", "g")
	if got := fetched(t, s.(driver.ParkingSource), o.told(t, 1)); !slices.Equal(got, []string{"b"}) {
		t.Errorf("parked are %q", got)
	}
	outs := receive(t, subscribe(t, plain, "out", "g", bus.Earliest, newObserver()), 2)
	for _, d := range outs {
		if d.Lane != 3 {
			t.Errorf("%s is in partition %d", d.Payload, d.Lane)
		}
	}
}

// TestOldBrokersDoNotFence: where a transaction's positions are not checked against the group,
// exactly once is refused.
func TestOldBrokersDoNotFence(t *testing.T) {
	old := kversion.Stable()
	old.SetMaxKeyVersion(int16(kmsg.TxnOffsetCommit), 2)
	b := open(t, fakeConfig(fakeCluster(t, kfake.SeedTopics(1, "t"), kfake.MaxVersions(old))))
	_, err := b.Driver().Subscribe(within(t), bus.Subscription{Topic: "t", Group: "g", InFlight: 1, Bytes: 1, Transactional: true}, newObserver())
	if !errors.Is(err, bus.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	subscribe(t, b, "t", "g", bus.Earliest, newObserver())
}
