package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/parking"
)

// park writes records to a parking topic. It returns each record's error; nil if all are durable.
func (d *busDriver) park(ctx context.Context, parking, topic string, records []kgo.Record) []error {
	if len(records) == 0 {
		return nil
	}
	if err := d.ensureParking(ctx, parking, topic, lastPartition(records)); err != nil {
		return failAll("park", parking, len(records), err)
	}
	errs := d.write(ctx, "park", parking, records)
	if slices.ContainsFunc(errs, isMissing) {
		d.forgetParking(parking)
	}
	return errs
}

// forgetParking has a parking topic looked up again, which was deleted.
func (d *busDriver) forgetParking(parking string) {
	d.parker.known.Delete(parking)
	d.topics.forget(parking)
}

func lastPartition(records []kgo.Record) int32 {
	last := int32(0)
	for i := range records {
		last = max(last, records[i].Partition)
	}
	return last
}

func sizeOf(records []kgo.Record) (size int) {
	for i := range records {
		size += recordSize(&records[i])
	}
	return size
}

// ensureParking creates a parking topic, whatever the bus does with others, and lets it grow with
// its topic.
func (d *busDriver) ensureParking(ctx context.Context, parking, topic string, partition int32) error {
	if n, ok := d.parker.known.Load(parking); ok && partition < n.(int32) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.config.PublishTimeout)
	defer cancel()
	origin, err := d.topics.find(ctx, topic)
	n := len(origin.Partitions)
	if n == 0 {
		return err
	}
	if err := d.ensureStore(ctx, parking, topic, n); err != nil {
		return fmt.Errorf("make the parking topic, which is compacted and has %d partitions: %w", n, err)
	}
	if err := d.growParking(ctx, parking, n); err != nil {
		return err
	}
	if knew, had := d.parker.known.Swap(parking, int32(n)); had && knew.(int32) < int32(n) {
		d.parker.renew(d) // the client knows of fewer partitions
	}
	return nil
}

// growParking returns when a parking topic has n partitions.
func (d *busDriver) growParking(ctx context.Context, parking string, n int) error {
	for b := (backoff.Backoff{}); ; {
		found, err := d.topics.find(ctx, parking)
		switch has := len(found.Partitions); {
		case has >= n:
			return nil
		case has == 0:
			d.topics.forget(parking)
			return err
		}
		grown, err := d.adm.UpdatePartitions(ctx, n, parking)
		if err == nil {
			err = grown.Error()
		}
		if err != nil && !errors.Is(err, kerr.InvalidPartitions) { // another process was quicker
			return fmt.Errorf("raise the parking topic to the %d partitions of the group's topic: %w", n, err)
		}
		if !b.Wait(ctx) {
			return fmt.Errorf("the parking topic has %d partitions now, which no broker serves yet: %w", n, ctx.Err())
		}
	}
}

// Inject implements driver.Injector. Keys are taken to be in the partitions in which this driver
// puts them.
func (d *busDriver) Inject(ctx context.Context, topic, group string, ps []driver.Parking) error {
	if d.isClosed() {
		return fail("inject", topic, bus.ErrClosed)
	}
	if err := d.knowsGroup(ctx, topic, group); err != nil {
		return fail("inject", topic, err)
	}
	origin, err := d.topics.find(ctx, topic)
	partitions := len(origin.Partitions)
	if partitions == 0 {
		return fail("inject", topic, err)
	}
	parking := parkingTopic(group, topic)
	partitioner := kgo.StickyKeyPartitioner(nil).ForTopic(topic)
	var records []kgo.Record
	for i := range ps {
		p := &ps[i]
		partition := p.Token.Lane
		if !p.Token.Parked {
			keyed := &kgo.Record{}
			if p.Key != "" {
				keyed.Key = []byte(p.Key)
			}
			partition = int32(partitioner.Partition(keyed, partitions))
		} else if partition < 0 || int(partition) >= partitions {
			continue // gone, with its lane
		}
		r, err := inject(parking, partition, p)
		if err != nil {
			return fail("inject", topic, err)
		}
		records = append(records, r)
	}
	if len(records) == 0 {
		return nil
	}
	return firstError(d.park(ctx, parking, topic, records))
}

// inject makes the record of a command.
func inject(topic string, partition int32, p *driver.Parking) (r kgo.Record, err error) {
	key, c := "inject-"+bus.NewID(), parking.CommandOf(p)
	if c.Kind == parking.Withdraw {
		r = kgo.Record{Topic: topic, Partition: partition, Key: []byte(key), Value: []byte{}}
		if p.Message != nil {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerWho, Value: []byte(p.Message.ID)})
		}
	} else if err = encodeParked(&r, topic, key, partition, p, ""); err != nil {
		return r, err
	}
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerPark, Value: []byte(c.String())})
	return r, nil
}

// knowsGroup is an error unless the group has a position in the topic, or members that have not
// committed one yet.
func (d *busDriver) knowsGroup(ctx context.Context, topic, group string) error {
	committed, err := d.adm.FetchOffsetsForTopics(ctx, group, topic)
	if err == nil {
		err = committed.Error()
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return err
	}
	for _, o := range committed[topic] {
		if o.At >= 0 {
			return nil
		}
	}
	described, err := d.adm.DescribeGroups(ctx, group)
	if err != nil {
		return err
	}
	for _, m := range described[group].Members {
		if joined, ok := m.Join.AsConsumer(); ok && slices.Contains(joined.Topics, topic) {
			return nil
		}
	}
	return fmt.Errorf("%w: group %q has no position in the topic", bus.ErrNotFound, group)
}
