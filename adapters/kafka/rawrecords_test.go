package kafka_test

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/adapters/kafka"
)

// raw is a client that writes to the partitions that its records name.
func raw(tb testing.TB, c kafka.Config, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	opts = append(opts, kgo.SeedBrokers(c.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	client, err := kgo.NewClient(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return client
}

// produce writes records as another program does.
func produce(tb testing.TB, c kafka.Config, records ...*kgo.Record) {
	tb.Helper()
	if err := raw(tb, c).ProduceSync(within(tb), records...).FirstErr(); err != nil {
		tb.Fatal(err)
	}
}

// recordAt is the first record from an offset on.
func recordAt(tb testing.TB, c kafka.Config, topic string, partition int32, offset int64) *kgo.Record {
	tb.Helper()
	return awaitRecord(tb, c, topic, partition, func(r *kgo.Record) bool { return r.Offset >= offset })
}

// awaitRecord is the first record that ok wants.
func awaitRecord(tb testing.TB, c kafka.Config, topic string, partition int32, ok func(*kgo.Record) bool) *kgo.Record {
	tb.Helper()
	client := raw(tb, c, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().AtStart()}}))
	for {
		fs := client.PollFetches(within(tb))
		if err := fs.Err(); err != nil {
			tb.Fatal(err)
		}
		for r := range fs.RecordsAll() {
			if ok(r) {
				return r
			}
		}
	}
}
