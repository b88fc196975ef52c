package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// errBatchTooLarge is the failure of a record that the topic would take in a smaller batch.
var errBatchTooLarge = errors.New("the batch was larger than the topic's limit, which was lowered meanwhile")

// blameBatches finds records that were refused only for the batch that they were in, after a
// topic's max.message.bytes was lowered: their failure is one that passes. From then on batches are
// smaller.
func (c *call) blameBatches(ctx context.Context, topic string, largest int, errs []error) {
	c.driver.topics.lower(ctx, c.client, topic, c.limit, largest)
	limit := int(c.driver.topics.limit(topic))
	if limit >= int(c.limit) {
		return
	}
	for i, err := range errs {
		if errors.Is(err, kerr.MessageTooLarge) && recordSize(&c.records[i])+batchOverhead <= limit {
			errs[i] = &bus.Error{
				Op: "publish", Broker: "kafka", Topic: topic, Definite: bus.IsDefinite(err), Retryable: true,
				Err: fmt.Errorf("%w (to %d bytes)", errBatchTooLarge, limit),
			}
		}
	}
}

// lower reads a topic's limit again, because its last known limit, was, is too large. A limit that
// may not be read is halved, down to the need of the largest record.
func (t *topics) lower(ctx context.Context, client *kgo.Client, name string, was int32, largest int) {
	t.lowering.Lock()
	defer t.lowering.Unlock()
	if t.limit(name) < was {
		return // another call has done it
	}
	limit, known := t.readLimit(ctx, name)
	if !known {
		limit = max(was/2, int32(largest+batchOverhead))
	}
	if limit < was {
		t.limits.Store(name, limit)
		client.PurgeTopicsFromProducing(name) // it asks for the limit once
	}
}

// isBatchTooLarge says whether a record was refused for the size of its batch.
func isBatchTooLarge(err error) bool { return errors.Is(err, errBatchTooLarge) }

// mayRepeat says whether records were refused for their batches, and none of their partitions may
// have taken later ones of the call: then they can be sent again in their order.
func mayRepeat(records []kgo.Record, errs []error, refused func(error) bool) bool {
	repeat := map[int32]bool{}
	for i, err := range errs {
		switch {
		case refused(err):
			repeat[records[i].Partition] = true
		case err == nil && repeat[records[i].Partition]:
			return false
		case err != nil && len(repeat) > 0 && !bus.IsDefinite(err):
			return false // the client may still be at work on it, and only the client knows where it goes
		}
	}
	return len(repeat) > 0
}

// repeat publishes those messages again that were refused for their batches.
func (d *busDriver) repeat(ctx context.Context, topic string, msgs []*bus.Message, errs []error) error {
	var again []*bus.Message
	var of []int
	for i, err := range errs {
		if isBatchTooLarge(err) {
			again, of = append(again, msgs[i]), append(of, i)
		}
	}
	outcomes := make([]error, len(again))
	if pe, ok := errors.AsType[*bus.PublishError](d.Publish(ctx, topic, again)); ok {
		outcomes = pe.Errs
	}
	for i, err := range outcomes {
		errs[of[i]] = err
	}
	return publishError(errs)
}

// isTooLarge says whether a record was refused for its own size or its batch's size.
func isTooLarge(err error) bool {
	return errors.Is(err, bus.ErrTooLarge) || errors.Is(err, errBatchTooLarge)
}
