package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
)

// behind is a partition in which a group has not finished everything: from is the first offset that
// it has to read.
type behind struct {
	partition int32
	from      int64
}

// Lag implements driver.Lagger. Messages finished beyond the committed offset, or not committed
// yet, count too. So do records that are no messages: markers of transactions, and offsets that
// compaction has emptied.
func (d *busDriver) Lag(ctx context.Context, topic, group string) (lag bus.Lag, err error) {
	if d.isClosed() {
		return lag, fail("lag", topic, bus.ErrClosed)
	}
	messages, parts, err := d.behind(ctx, topic, group)
	if err == nil {
		lag, err = d.oldest(ctx, topic, parts)
	}
	if err != nil {
		return bus.Lag{}, fail("lag", topic, err)
	}
	lag.Messages = messages
	return lag, nil
}

// behind counts a group's unread offsets, and says where they begin.
func (d *busDriver) behind(ctx context.Context, topic, group string) (messages int64, parts []behind, err error) {
	ends, err := d.adm.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, nil, err
	}
	committed, err := d.adm.FetchOffsetsForTopics(ctx, group, topic)
	if err == nil {
		err = committed.Error()
	}
	if err != nil {
		return 0, nil, err
	}
	known := false
	unread := map[int32]int64{} // ends of partitions that the group has no position in
	note := func(p int32, from, end int64) {
		if end > from {
			messages += end - from
			parts = append(parts, behind{p, from})
		}
	}
	for p, end := range ends[topic] {
		if o, ok := committed.Lookup(topic, p); ok && o.At >= 0 {
			known = true
			note(p, o.At, end.Offset)
		} else {
			unread[p] = end.Offset
		}
	}
	if !known {
		return 0, nil, fmt.Errorf("%w: group %q has no position in the topic", bus.ErrNotFound, group)
	}
	if len(unread) == 0 {
		return messages, parts, nil
	}
	starts, err := d.adm.ListStartOffsets(ctx, topic)
	if err != nil {
		return 0, nil, err
	}
	for p, end := range unread {
		start, ok := starts.Lookup(topic, p)
		switch {
		case start.Err != nil:
			return 0, nil, fmt.Errorf("the start of partition %d: %w", p, start.Err)
		case !ok:
			return 0, nil, fmt.Errorf("the brokers did not tell the start of partition %d", p)
		}
		note(p, start.Offset, end)
	}
	return messages, parts, nil
}

const (
	// oldestBytes is how much is read of a partition to see when its first record was written. A
	// broker gives one batch at least.
	oldestBytes = 1
	// oldestAtOnce bounds the partitions that are asked at once.
	oldestAtOnce = 16
)

// oldest finds out when the oldest of the unread records was written. Its lag has no number of
// messages.
func (d *busDriver) oldest(ctx context.Context, topic string, parts []behind) (lag bus.Lag, err error) {
	if len(parts) == 0 {
		return lag, nil
	}
	meta, err := d.topics.find(ctx, topic)
	if err != nil {
		return lag, err
	}
	leaders := map[int32]kmsg.MetadataResponseTopicPartition{}
	for _, p := range meta.Partitions {
		leaders[p.Partition] = p
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	room := make(chan struct{}, oldestAtOnce)
	for _, p := range parts {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			leader := leaders[p.partition]
			log := partitionLog{
				driver: d, topic: topic, partition: p.partition, bytes: oldestBytes,
				known: leader.Leader >= 0 && leader.Partition == p.partition, meta: meta, leader: leader,
			}
			records, _, err := log.readAs(ctx, p.from, anyRecord)
			if errors.Is(err, kerr.OffsetOutOfRange) { // retention was quicker
				var start int64
				if start, err = log.begin(ctx, p.from); err == nil {
					records, _, err = log.readAs(ctx, start, anyRecord)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("partition %d: %w", p.partition, err))
			}
			for _, r := range records {
				if lag.Oldest.IsZero() || r.Timestamp.Before(lag.Oldest) {
					lag.Oldest = r.Timestamp
				}
			}
		})
	}
	wg.Wait()
	return lag, errors.Join(errs...)
}
