package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// extent is where a partition begins and ends, or why that is not known.
type extent struct {
	start, end int64
	err        error
}

const (
	atEnd   = -1
	atStart = -2
)

// extents asks the leaders of a topic's partitions where these begin and end. The answer has the
// given partitions that the topic has, each with an error of its own.
func (d *busDriver) extents(ctx context.Context, t kmsg.MetadataResponseTopic, partitions []int32) map[int32]extent {
	wanted := map[int32]bool{}
	for _, p := range partitions {
		wanted[p] = true
	}
	extents := map[int32]extent{}
	byLeader := map[int32][]kmsg.MetadataResponseTopicPartition{}
	for _, p := range t.Partitions {
		switch {
		case !wanted[p.Partition]:
		case p.Leader < 0:
			extents[p.Partition] = extent{err: fmt.Errorf("partition %d: %w", p.Partition, kerr.LeaderNotAvailable)}
		default:
			byLeader[p.Leader] = append(byLeader[p.Leader], p)
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for leader, ps := range byLeader {
		wg.Go(func() {
			ends := d.offsetsAt(ctx, leader, *t.Topic, ps, atEnd)
			starts := d.offsetsAt(ctx, leader, *t.Topic, ps, atStart)
			mu.Lock()
			defer mu.Unlock()
			for _, p := range ps {
				start, end := starts[p.Partition], ends[p.Partition]
				extents[p.Partition] = extent{start.offset, end.offset, errors.Join(start.err, end.err)}
			}
		})
	}
	wg.Wait()
	return extents
}

type offsetAnswer struct {
	offset int64
	err    error
}

// offsetsAt asks a leader for an offset of each of these partitions, or says for each why it has
// none.
func (d *busDriver) offsetsAt(ctx context.Context, leader int32, topic string, partitions []kmsg.MetadataResponseTopicPartition, at int64) map[int32]offsetAnswer {
	answers := map[int32]offsetAnswer{}
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	for _, p := range partitions {
		answers[p.Partition] = offsetAnswer{err: fmt.Errorf("the broker's answer lacks partition %d", p.Partition)}
		of := kmsg.NewListOffsetsRequestTopicPartition()
		of.Partition, of.Timestamp, of.CurrentLeaderEpoch = p.Partition, at, p.LeaderEpoch
		t.Partitions = append(t.Partitions, of)
	}
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, d.client.Broker(int(leader)))
	if err != nil {
		for _, p := range partitions {
			answers[p.Partition] = offsetAnswer{err: err}
		}
		return answers
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			a := offsetAnswer{offset: p.Offset}
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				a.err = fmt.Errorf("partition %d: %w", p.Partition, err)
			}
			answers[p.Partition] = a
		}
	}
	return answers
}

// findAnywhere is find for a topic that needs so many partitions, when its absence matters. A
// broker that has not heard of the topic yet calls it unknown. A broker that has not heard of its
// growth counts too few partitions. A partition's leader has heard of the partition, so a partition
// that no broker knows does not exist. Then the answer has no partitions, or too few, and the error
// is nil.
func (d *busDriver) findAnywhere(ctx context.Context, name string, partitions int) (kmsg.MetadataResponseTopic, error) {
	found, brokers, err := askFor(ctx, d.client, name)
	if err != nil || len(found.Partitions) >= partitions {
		return found, err
	}
	answers := make([]kmsg.MetadataResponseTopic, len(brokers))
	errs := make([]error, len(brokers))
	var wg sync.WaitGroup
	for i, b := range brokers {
		wg.Go(func() { answers[i], _, errs[i] = askFor(ctx, d.client.Broker(int(b.NodeID)), name) })
	}
	wg.Wait()
	for _, a := range answers {
		if len(a.Partitions) > len(found.Partitions) {
			found = a
		}
	}
	if len(found.Partitions) >= partitions {
		return found, nil
	}
	return found, errors.Join(errs...)
}

// askFor asks for a topic, which has no partitions in the answer if it is unknown, and for the
// brokers.
func askFor(ctx context.Context, of kmsg.Requestor, name string) (found kmsg.MetadataResponseTopic, brokers []kmsg.MetadataResponseBroker, err error) {
	req := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &name
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, of)
	if err != nil {
		return found, nil, err
	}
	if len(resp.Topics) != 1 {
		return found, nil, errors.New("the broker's answer lacks the topic")
	}
	found = resp.Topics[0]
	if err := kerr.ErrorForCode(found.ErrorCode); err != nil && !isMissing(err) {
		return found, nil, err
	}
	if found.Topic == nil {
		found.Topic = &name
	}
	return found, resp.Brokers, nil
}
