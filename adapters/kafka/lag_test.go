package kafka_test

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestLagWithoutTheStart: without the start of a partition, its lag is not known.
func TestLagWithoutTheStart(t *testing.T) {
	c := fakeCluster(t, kfake.SeedTopics(2, "t"))
	b := open(t, fakeConfig(c))
	client, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	adm := kadm.NewClient(client)
	for range 3 {
		if err := client.ProduceSync(within(t), &kgo.Record{Topic: "t", Partition: 1}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	var first, position kadm.Offsets
	first.AddOffset("t", 1, 2, -1)
	if _, err := adm.DeleteRecords(within(t), first); err != nil {
		t.Fatal(err)
	}
	position.AddOffset("t", 0, 0, -1)
	if err := adm.CommitAllOffsets(within(t), "g", position); err != nil {
		t.Fatal(err)
	}
	lagger, _ := bus.As[driver.Lagger](b)
	if lag, err := lagger.Lag(within(t), "t", "g"); err != nil || lag.Messages != 1 {
		t.Errorf("the lag is %+v, want 1; %v", lag, err)
	}
	c.ControlKey(int16(kmsg.ListOffsets), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		asked := r.(*kmsg.ListOffsetsRequest)
		answer := asked.ResponseKind().(*kmsg.ListOffsetsResponse)
		for _, t := range asked.Topics {
			topic := kmsg.NewListOffsetsResponseTopic()
			topic.Topic = t.Topic
			for _, p := range t.Partitions {
				if p.Timestamp != -2 { // not the start
					return nil, nil, false
				}
				partition := kmsg.NewListOffsetsResponseTopicPartition()
				partition.Partition, partition.ErrorCode = p.Partition, kerr.LeaderNotAvailable.Code
				topic.Partitions = append(topic.Partitions, partition)
			}
			answer.Topics = append(answer.Topics, topic)
		}
		return answer, nil, true
	})
	if lag, err := lagger.Lag(within(t), "t", "g"); !errors.Is(err, kerr.LeaderNotAvailable) {
		t.Errorf("without the start the lag is %+v, %v", lag, err)
	}
}
