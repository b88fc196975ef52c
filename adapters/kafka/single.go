package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// errNeighbour is the failure of a record that was refused with others and must not be sent again,
// to keep its order.
var errNeighbour = errors.New("the broker refused a batch because of one of its records")

// isInvalid says whether the broker calls a record invalid. It says so of all records of the batch,
// and the client of all that wait for the partition, other callers' too.
func isInvalid(err error) bool {
	return errors.Is(err, kerr.InvalidRecord) || errors.Is(err, kerr.InvalidTimestamp)
}

// judgeSingly sends each record again that was refused with others, so that its outcome is its own.
// If a later record of the call is in the log, or may be, that would change their order: then their
// failure is one that passes.
func (d *busDriver) judgeSingly(ctx context.Context, topic string, records []kgo.Record, errs []error) error {
	inOrder := mayRepeat(records, errs, isInvalid)
	ctx, cancel := context.WithTimeout(ctx, d.config.PublishTimeout)
	defer cancel()
	for i, err := range errs {
		switch {
		case !isInvalid(err):
		case inOrder:
			errs[i] = d.publishAlone(ctx, topic, &records[i])
		default:
			errs[i] = &bus.Error{
				Op: "publish", Broker: "kafka", Topic: topic, Definite: bus.IsDefinite(err), Retryable: true,
				Err: fmt.Errorf("%w: %v", errNeighbour, err), //nolint:errorlint // it is not known whether this record is the invalid one
			}
		}
	}
	return publishError(errs)
}

// publishAlone publishes a record in a batch of its own. It takes the parker's client, with which
// nobody else writes to topics of messages.
func (d *busDriver) publishAlone(ctx context.Context, topic string, r *kgo.Record) error {
	refuse := func(err error) error { return publishFailure(topic, fmt.Errorf("%w: %w", errNotSent, err), true) }
	select {
	case d.alone <- struct{}{}:
		defer func() { <-d.alone }()
	case <-ctx.Done():
		return refuse(ctx.Err())
	}
	client, err := d.parker.take(d)
	if err != nil {
		return refuse(err)
	}
	defer client.users.Done()
	again := []kgo.Record{{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers}}
	size := sizeOf(again)
	if !d.buffer.TryTake(size) {
		if !d.buffer.Take(ctx, nil, size) {
			return refuse(ctx.Err())
		}
	}
	err = d.produce(ctx, client.Client, again, size).wait(ctx, topic)
	if isMissing(err) { // the client would go on with the id of the topic that was deleted
		d.parker.renew(d)
	}
	if pe, ok := errors.AsType[*bus.PublishError](err); ok {
		return pe.Errs[0]
	}
	return nil
}
