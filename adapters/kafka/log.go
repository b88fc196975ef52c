package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// partitionLog reads a partition straight from its leader, beside groups and consumers. Unlike a consumer, it says how
// far it has read even if nothing is there: after compaction, an offset may be of no record for ever.
type partitionLog struct {
	driver    *driver
	topic     string
	partition int32
	known     bool // leader and id are
	leader    int32
	id        [16]byte // of the topic; zero where the broker has none
	bytes     int32    // how much one read asks for; 0: logFetchBytes
}

// logFetchBytes is how much one read asks for. One larger batch comes alone.
const logFetchBytes = 4 << 20

// read returns the records from offset on that one request brings, and the offset after them, which is at least
// offset. Both may be nothing new when offset is the end. It waits, within ctx, for a leader that can be reached.
func (l *partitionLog) read(ctx context.Context, offset int64) (records []*kgo.Record, next int64, err error) {
	for b := (backoff{}); ; {
		if err := l.find(ctx); err == nil {
			records, next, err = l.fetch(ctx, offset)
			if err == nil {
				return records, next, nil
			}
			l.known = false // whatever it is, ask again who leads
			if !retryable(err) && !errors.Is(err, kerr.UnknownTopicID) {
				return nil, offset, err
			}
			if b.wait(ctx) != nil {
				return nil, offset, err
			}
		} else if isMissing(err) || !retryable(err) || b.wait(ctx) != nil {
			return nil, offset, err
		}
	}
}

// find learns who leads the partition.
func (l *partitionLog) find(ctx context.Context) error {
	if l.known {
		return nil
	}
	t, err := l.driver.topics.find(ctx, l.topic)
	if err != nil && len(t.Partitions) == 0 {
		return err
	}
	for _, p := range t.Partitions {
		if p.Partition != l.partition {
			continue
		}
		if p.Leader < 0 {
			return fmt.Errorf("partition %d: %w", l.partition, kerr.LeaderNotAvailable)
		}
		l.known, l.leader, l.id = true, p.Leader, t.TopicID
		return nil
	}
	return fmt.Errorf("partition %d: %w", l.partition, kerr.UnknownTopicOrPartition)
}

func (l *partitionLog) fetch(ctx context.Context, offset int64) ([]*kgo.Record, int64, error) {
	size := cmp.Or(l.bytes, logFetchBytes)
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel = 100, 1, size, 1
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = l.topic, l.id
	partition := kmsg.NewFetchRequestTopicPartition()
	partition.Partition, partition.FetchOffset, partition.PartitionMaxBytes = l.partition, offset, size
	topic.Partitions = append(topic.Partitions, partition)
	req.Topics = append(req.Topics, topic)

	kresp, err := l.driver.client.Broker(int(l.leader)).Request(ctx, req)
	if err != nil {
		return nil, offset, err
	}
	resp := kresp.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, offset, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, offset, errors.New("the broker's answer is not about the partition")
	}
	opts := kgo.ProcessFetchPartitionOpts{Offset: offset, IsolationLevel: kgo.ReadCommitted(), Topic: l.topic, Partition: l.partition}
	p, next := kgo.ProcessFetchPartition(opts, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	return p.Records, next, p.Err
}

// each calls f with each record from start to before end, until it returns false.
func (l *partitionLog) each(ctx context.Context, start, end int64, f func(*kgo.Record) (bool, error)) error {
	for at := start; at < end; {
		records, next, err := l.read(ctx, at)
		if err != nil {
			return err
		}
		for _, r := range records {
			if r.Offset >= end {
				return nil
			}
			if more, err := f(r); !more {
				return err
			}
		}
		at = next
	}
	return nil
}

// at returns the records at these offsets, which ascend, as far as they are still there.
func (l *partitionLog) at(ctx context.Context, offsets []int64) (map[int64]*kgo.Record, error) {
	found := make(map[int64]*kgo.Record, len(offsets))
	for len(offsets) > 0 {
		records, next, err := l.read(ctx, offsets[0])
		if err != nil && !errors.Is(err, kerr.OffsetOutOfRange) {
			return nil, err
		}
		for _, r := range records {
			if _, ok := slices.BinarySearch(offsets, r.Offset); ok {
				found[r.Offset] = r
			}
		}
		next = max(next, offsets[0]+1)
		for len(offsets) > 0 && offsets[0] < next {
			offsets = offsets[1:]
		}
	}
	return found, nil
}
