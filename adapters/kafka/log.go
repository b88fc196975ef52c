package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/internal/backoff"
)

// partitionLog reads a partition straight from its leader, beside groups and consumers. Unlike a
// consumer, it says how far it has read even if nothing is there: after compaction, an offset may
// be of no record for ever.
type partitionLog struct {
	driver    *busDriver
	topic     string
	partition int32
	known     bool // meta and leader are
	meta      kmsg.MetadataResponseTopic
	leader    kmsg.MetadataResponseTopicPartition // its epoch has a former leader, which does not know that it is one, refuse to answer
	bytes     int32                               // how much one read asks for; 0: logFetchBytes

	patience time.Duration // how long to wait for a leader, or for the log to go on; 0: as long as the caller does
	once     bool          // the first failure counts
}

// logFetchBytes is how much one read asks for. One larger batch comes alone.
const logFetchBytes = 4 << 20

// Isolation levels of reads.
const (
	anyRecord int8 = iota
	committed      // records before the first open transaction that were not aborted
)

// errStands: the log has records, but the broker returns none.
var errStands = errors.New("the partition's leader returns no further records: a transaction is open in the partition, or the leader lags behind")

// bounded is the context of one step.
func (l *partitionLog) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if l.patience == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, l.patience)
}

// stands says whether nothing has been read since a point in time, for longer than the reader is to
// wait.
func (l *partitionLog) stands(since time.Time) bool {
	return l.once || l.patience > 0 && time.Since(since) > l.patience
}

// read returns the records from offset on that one request brings, and the offset after them, which
// is at least offset. Both may be nothing new: when offset is the end, before an open transaction,
// or shortly after a change of leaders. It waits, within ctx, for a leader that can be reached.
func (l *partitionLog) read(ctx context.Context, offset int64) (records []*kgo.Record, next int64, err error) {
	return l.readAs(ctx, offset, committed)
}

func (l *partitionLog) readAs(ctx context.Context, offset int64, isolation int8) (records []*kgo.Record, next int64, err error) {
	next = offset
	err = l.ask(ctx, func(ctx context.Context) error {
		found, after, err := l.fetch(ctx, offset, isolation)
		if err == nil {
			records, next = found, after
		}
		return err
	})
	return records, next, err
}

// ask calls f with the partition's leader known, until f succeeds or fails for good. A leader that
// does not know the partition has not heard of it yet: whether it exists, find decides.
func (l *partitionLog) ask(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	for b := (backoff.Backoff{}); ; {
		err := l.find(ctx)
		final := isMissing(err) || !retryable(err)
		if err == nil {
			if err = f(ctx); err == nil {
				return nil
			}
			l.known = false // whatever the error is, ask for the leader again
			final = !isMissing(err) && !retryable(err)
		}
		if final || l.once || !b.Wait(ctx) {
			return err
		}
	}
}

// find looks up the partition's leader.
func (l *partitionLog) find(ctx context.Context) error {
	if l.known {
		return nil
	}
	t, err := l.driver.findAnywhere(ctx, l.topic, int(l.partition)+1)
	if err != nil {
		return err
	}
	for _, p := range t.Partitions {
		if p.Partition != l.partition {
			continue
		}
		if p.Leader < 0 {
			return fmt.Errorf("partition %d: %w", l.partition, kerr.LeaderNotAvailable)
		}
		l.known, l.meta, l.leader = true, t, p
		return nil
	}
	return fmt.Errorf("partition %d: %w", l.partition, kerr.UnknownTopicOrPartition)
}

func (l *partitionLog) fetch(ctx context.Context, offset int64, isolation int8) ([]*kgo.Record, int64, error) {
	size := cmp.Or(l.bytes, logFetchBytes)
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel = 100, 1, size, isolation
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = l.topic, l.meta.TopicID // zero where the broker has none
	partition := kmsg.NewFetchRequestTopicPartition()
	partition.Partition, partition.FetchOffset, partition.PartitionMaxBytes = l.partition, offset, size
	partition.CurrentLeaderEpoch = l.leader.LeaderEpoch
	topic.Partitions = append(topic.Partitions, partition)
	req.Topics = append(req.Topics, topic)

	kresp, err := l.driver.client.Broker(int(l.leader.Leader)).Request(ctx, req)
	if err != nil {
		return nil, offset, err
	}
	resp := kresp.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, offset, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, offset, errors.New("the broker's answer lacks the partition")
	}
	level := kgo.ReadUncommitted()
	if isolation == committed {
		level = kgo.ReadCommitted()
	}
	opts := kgo.ProcessFetchPartitionOpts{Offset: offset, IsolationLevel: level, Topic: l.topic, Partition: l.partition}
	p, next := kgo.ProcessFetchPartition(opts, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	return p.Records, next, p.Err
}

// each calls f with each record from start to before end, until it returns false.
func (l *partitionLog) each(ctx context.Context, start, end int64, f func(*kgo.Record) (bool, error)) error {
	moved := time.Now()
	for at := start; at < end; {
		records, next, err := l.read(ctx, at)
		if errors.Is(err, kerr.OffsetOutOfRange) {
			if next, err = l.begin(ctx, at); err == nil {
				at = next
				continue
			}
		}
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
		if next > at {
			moved = time.Now()
		} else if l.stands(moved) {
			return errStands
		}
		at = next
	}
	return nil
}

// errShort: the log ends before a record that was in it.
var errShort = errors.New("the partition ends before a record that was written to it: the partition was cut off, or its topic was created anew")

// at returns the records at these offsets, which ascend and are of committed records, as far as
// they are still there. A record is missing only if the log goes on behind it, or begins behind it:
// an empty answer says nothing.
func (l *partitionLog) at(ctx context.Context, offsets []int64) (map[int64]*kgo.Record, error) {
	found := make(map[int64]*kgo.Record, len(offsets))
	moved := time.Now()
	for b := (backoff.Backoff{}); len(offsets) > 0; {
		// An open transaction may hold up the committed records behind it, so this reads
		// uncommitted.
		records, next, err := l.readAs(ctx, offsets[0], anyRecord)
		outside := errors.Is(err, kerr.OffsetOutOfRange)
		if err != nil && !outside {
			return nil, err
		}
		for _, r := range records {
			if _, ok := slices.BinarySearch(offsets, r.Offset); ok {
				found[r.Offset] = r
			}
		}
		if next <= offsets[0] {
			e, err := l.extent(ctx)
			switch {
			case err != nil:
				return nil, err
			case e.end <= offsets[0]:
				return nil, errShort
			case e.start > offsets[0]:
				next = e.start
			case l.stands(moved):
				return nil, errStands
			default:
				if !b.Wait(ctx) {
					return nil, ctx.Err()
				}
			}
		}
		if next > offsets[0] {
			moved = time.Now()
		}
		for len(offsets) > 0 && offsets[0] < next {
			offsets = offsets[1:]
		}
	}
	return found, nil
}

// begin returns the log's start, if the start is behind an offset: the earlier records were
// deleted.
func (l *partitionLog) begin(ctx context.Context, offset int64) (int64, error) {
	e, err := l.extent(ctx)
	if err == nil && e.start <= offset {
		err = errShort
	}
	return e.start, err
}

// extent asks the leader where the log begins and ends. Both decide over what counts as lost, so
// the leader is looked up anew.
func (l *partitionLog) extent(ctx context.Context) (e extent, err error) {
	l.known = false
	err = l.ask(ctx, func(ctx context.Context) error {
		e = l.driver.extents(ctx, l.meta, []int32{l.partition})[l.partition]
		return e.err
	})
	return e, err
}
