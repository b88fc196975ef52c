package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// maxStored bounds a stored record, so that it fits into one request of the client.
const maxStored = 96 << 20

// ensureStore finds a topic for stored messages, or creates it, even if the bus creates no other
// topics: the alternative is to lose messages. The topic takes our largest message and the largest
// of the topic of origin, if an origin is named.
func (d *busDriver) ensureStore(ctx context.Context, name, origin string, partitions int) error {
	size := d.config.MaxMessage + batchOverhead
	if origin != "" && !d.topics.has(name) {
		size = max(size, d.sizeLimit(ctx, origin))
	}
	if err := d.topics.look(ctx, name, partitions, compacted(min(size+storeRoom, maxStored))); err != nil {
		return err
	}
	configs, err := d.configsOf(ctx, name)
	if err != nil {
		return nil //nolint:nilerr // who may not read a topic's configuration finds out by being refused
	}
	if how := expires(configs); how != "" {
		d.topics.forget(name)
		return fmt.Errorf("topic %q has %s, so stored messages would be deleted: it needs cleanup.policy=compact", name, how)
	}
	if limit := limitIn(configs); limit > 0 { // the topic's own, not our messages' limit
		d.topics.limits.Store(name, int32(min(limit, maxStored)))
	}
	return nil
}

// checkStores returns an error, in the broker's words, if the topics for the group's poisoned and
// parked messages cannot have their names. Kafka takes names for the same that differ in dots and
// underscores only. Every other obstacle passes, or is reported when the topics are needed.
func (d *busDriver) checkStores(ctx context.Context, s bus.Subscription) error {
	ctx, cancel := context.WithTimeout(ctx, subscribePatience)
	defer cancel()
	names := []string{poisonTopic(s.Group), parkingTopic(s.Group, s.Topic)}
	answers, err := d.adm.ValidateCreateTopics(ctx, 1, int16(d.config.Replication), nil, names...)
	if err != nil {
		return nil // the broker is not to be reached, or too old
	}
	for _, a := range answers.Sorted() {
		if errors.Is(a.Err, kerr.InvalidTopicException) {
			return fmt.Errorf("%w: the group %q needs the topic %q, which cannot be created: %s: %w", bus.ErrInvalid, s.Group, a.Topic, a.ErrMessage, a.Err)
		}
	}
	return nil
}

// expires says by which settings a topic deletes records that nobody removed; "" if there are none.
func expires(configs map[string]string) string {
	policies := strings.Split(configs["cleanup.policy"], ",")
	compact, deletes := slices.Contains(policies, "compact"), slices.Contains(policies, "delete")
	forever := configs["retention.ms"] == "-1" && configs["retention.bytes"] == "-1"
	if configs["cleanup.policy"] == "" || compact && (!deletes || forever) {
		return ""
	}
	return fmt.Sprintf("cleanup.policy=%s", configs["cleanup.policy"])
}

// configsOf are a topic's settings.
func (d *busDriver) configsOf(ctx context.Context, name string) (map[string]string, error) {
	described, err := d.adm.DescribeTopicConfigs(ctx, name)
	if err != nil {
		return nil, err
	}
	configs := map[string]string{}
	for _, c := range described {
		if c.Err != nil {
			return nil, c.Err
		}
		for _, kv := range c.Configs {
			configs[kv.Key] = kv.MaybeValue()
		}
	}
	return configs, nil
}

// sizeLimit is the largest batch that a topic takes; 0 if it is not known.
func (d *busDriver) sizeLimit(ctx context.Context, name string) int {
	configs, err := d.configsOf(ctx, name)
	if err != nil {
		return 0
	}
	return limitIn(configs)
}

func limitIn(configs map[string]string) int {
	n, err := strconv.Atoi(configs["max.message.bytes"])
	if err != nil || n < 512 { // less, the client does not take
		return 0
	}
	return n
}

// makeRoom has a store's topic take records of this size, if we may change its settings.
func (d *busDriver) makeRoom(ctx context.Context, name string, size int) error {
	if size > maxStored {
		return fmt.Errorf("%d bytes: %w", size, kerr.MessageTooLarge)
	}
	configs, err := d.configsOf(ctx, name)
	if err != nil {
		return err
	}
	limit := limitIn(configs)
	if limit < size {
		limit = min(size+storeRoom, maxStored)
		text := strconv.Itoa(limit)
		changes := []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &text}}
		if segment, err := strconv.Atoi(configs["segment.bytes"]); err == nil && segment < limit {
			changes = append(changes, kadm.AlterConfig{Op: kadm.SetConfig, Name: "segment.bytes", Value: &text})
		}
		altered, err := d.adm.AlterTopicConfigs(ctx, changes, name)
		if err != nil {
			return err
		}
		for _, a := range altered {
			if a.Err != nil {
				return fmt.Errorf("raise the topic's max.message.bytes to %d: %w", limit, a.Err)
			}
		}
	}
	d.topics.limits.Store(name, int32(min(limit, maxStored)))
	return nil
}

// write appends records to a store's topic, which exists. It returns each record's error; nil if
// all are durable. A record that is too large is refused alone: each record of a batch that was too
// large is written again by itself.
func (d *busDriver) write(ctx context.Context, op, topic string, records []kgo.Record) []error {
	errs := d.writeOnce(ctx, op, topic, records)
	largest := 0
	for i := range errs {
		if isTooLarge(errs[i]) {
			largest = max(largest, recordSize(&records[i])+batchOverhead)
		}
	}
	if largest == 0 {
		return errs
	}
	refused := d.makeRoom(ctx, topic, largest)
	d.parker.renew(d) // the client knows another limit
	for i := range errs {
		if !isTooLarge(errs[i]) {
			continue
		}
		r := &records[i]
		*r = kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers}
		if again := d.writeOnce(ctx, op, topic, records[i:i+1]); again != nil {
			errs[i] = again[0]
			if refused != nil && errors.Is(errs[i], bus.ErrTooLarge) {
				errs[i] = storeFailure(op, topic, fmt.Errorf("%w, and room could not be made: %w", kerr.MessageTooLarge, refused), true)
			}
			continue
		}
		errs[i] = nil
	}
	if !slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		return nil
	}
	return errs
}

func (d *busDriver) writeOnce(ctx context.Context, op, topic string, records []kgo.Record) []error {
	client, err := d.parker.take(d)
	if err != nil {
		return failAll(op, topic, len(records), err)
	}
	defer client.users.Done()
	size := sizeOf(records)
	if !d.buffer.TryTake(size) {
		if !d.buffer.Take(ctx, nil, size) {
			return failAll(op, topic, len(records), ctx.Err())
		}
	}
	errs := d.produce(ctx, client.Client, records, size).confirmed(ctx)
	missing := false
	for i, err := range errs {
		if err != nil {
			errs[i] = storeFailure(op, topic, err, errors.Is(err, kerr.MessageTooLarge))
			missing = missing || isMissing(err)
		}
	}
	if missing { // deleted since it was looked up: the client would go on with its id
		d.topics.forget(topic)
		d.parker.renew(d)
	}
	return errs
}

// confirmed waits for the records of a store. It returns the client's error for each record; nil if
// all are durable.
func (c *call) confirmed(ctx context.Context) []error {
	var cause error
	select {
	case <-c.done:
		return c.errs
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-c.driver.patience.begin():
		cause = fmt.Errorf("not confirmed within %v: %w", c.driver.config.PublishTimeout, context.DeadlineExceeded)
	}
	errs := make([]error, len(c.records))
	c.mu.Lock()
	defer c.mu.Unlock()
	copy(errs, c.errs)
	for i := range c.records {
		if c.records[i].Context != nil { // not finished
			errs[i] = cause
		}
	}
	return errs
}

// storeFailure makes the error of one record. Only a fault of the record itself is final: a missing
// topic is made again, and a missing right may be given.
func storeFailure(op, topic string, err error, isDefinite bool) error {
	e := fail(op, topic, err).(*bus.Error) //nolint:errorlint // made by fail
	e.Definite = isDefinite
	e.Retryable = !errors.Is(e.Err, bus.ErrTooLarge) && !errors.Is(e.Err, bus.ErrInvalid) && !errors.Is(e.Err, bus.ErrClosed)
	if missing, ok := errors.AsType[*kerr.Error](err); ok && isMissing(err) {
		e.Err = fmt.Errorf("the topic is missing: %w", missing) // without bus.ErrNotFound, which is final
	}
	return e
}

// failAll is the outcome when no record was handed to the client.
func failAll(op, topic string, n int, err error) []error {
	return driver.FailAll(n, storeFailure(op, topic, fmt.Errorf("%w: %w", errNotSent, err), true)).Errs
}

// firstError is the first failure among outcomes.
func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
