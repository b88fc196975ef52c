package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Publish implements driver.Driver.
func (d *busDriver) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	refuse := func(err error) error {
		return driver.FailAll(len(msgs), publishFailure(topic, fmt.Errorf("%w: %w", errNotSent, err), true))
	}
	if d.isClosed() {
		return refuse(bus.ErrClosed)
	}
	if !d.topics.has(topic) {
		bounded, cancel := context.WithTimeout(ctx, d.config.PublishTimeout)
		defer cancel()
		if err := d.topics.ensure(bounded, topic); err != nil {
			return refuse(err)
		}
	}
	records, size := encode(topic, msgs)
	if !d.buffer.TryTake(size) {
		bounded, cancel := context.WithTimeout(ctx, d.config.PublishTimeout)
		defer cancel()
		if !d.buffer.Take(bounded, nil, size) {
			return refuse(fmt.Errorf("%d MiB of messages wait for the brokers already: %w", publishBuffer>>20, bounded.Err()))
		}
	}
	err := d.produce(ctx, d.client, records, size).wait(ctx, topic)
	pe, ok := errors.AsType[*bus.PublishError](err)
	switch {
	case !ok:
		return err
	case mayRepeat(records, pe.Errs, isBatchTooLarge):
		return d.repeat(ctx, topic, msgs, pe.Errs)
	default:
		return d.judgeSingly(ctx, topic, records, pe.Errs)
	}
}

// publishBuffer bounds the bytes of messages that are being published, of all callers. A broker
// that does not answer costs this much memory, then publishers wait.
const publishBuffer = 256 << 20

// call is the records of one publish on their way.
type call struct {
	driver  *busDriver
	size    int
	records []kgo.Record
	done    chan struct{} // closed when all records are finished
	began   traffic
	client  *kgo.Client
	limit   int32 // of a batch, when the call began

	mu   sync.Mutex
	left int
	errs []error // by record; nil as long as none failed
}

// produce hands the records to the client, which keeps their order. They are sent even if ctx ends:
// the client cannot cancel a record without failing its neighbours, which may be other callers'.
func (d *busDriver) produce(ctx context.Context, client *kgo.Client, records []kgo.Record, size int) *call {
	c := &call{driver: d, size: size, records: records, done: make(chan struct{}), left: len(records), began: d.wire.traffic(), client: client}
	if len(records) > 0 {
		c.limit = d.topics.limit(records[0].Topic)
	}
	detached := context.WithoutCancel(ctx) // for hooks that look into it
	promise := c.finish
	for i := range records {
		client.Produce(detached, &records[i], promise)
	}
	return c
}

// finish is called by the client for each record, from one goroutine.
func (c *call) finish(r *kgo.Record, err error) {
	c.mu.Lock()
	r.Context = nil // marks the record as finished, for outcome
	if err != nil {
		c.note(r, err)
	}
	c.left--
	last := c.left == 0
	c.mu.Unlock()
	if last {
		c.driver.buffer.Give(c.size)
		close(c.done)
	}
}

func (c *call) note(r *kgo.Record, err error) {
	if c.errs == nil {
		c.errs = make([]error, len(c.records))
	}
	for i := range c.records {
		if &c.records[i] == r {
			c.errs[i] = err
			return
		}
	}
}

// wait waits until all records are durable or failed, or the caller's patience ends.
func (c *call) wait(ctx context.Context, topic string) error {
	var cause error
	select {
	case <-c.done:
		if c.errs == nil {
			return nil
		}
	case <-ctx.Done():
		cause = context.Cause(ctx)
		if !errors.Is(cause, ctx.Err()) {
			cause = fmt.Errorf("%w: %w", ctx.Err(), cause)
		}
	case <-c.driver.patience.begin():
		cause = fmt.Errorf("not confirmed within %v: %w", c.driver.config.PublishTimeout, context.DeadlineExceeded)
	}
	return c.outcome(ctx, topic, cause)
}

// outcome returns each record's result; cause is the reason not to wait for records that are still
// under way.
func (c *call) outcome(ctx context.Context, topic string, cause error) error {
	errs := make([]error, len(c.records))
	failed, missing, large := false, false, 0
	c.mu.Lock()
	for i := range c.records {
		err := cause
		if c.records[i].Context == nil {
			err = nil
			if c.errs != nil {
				err = c.errs[i]
			}
		}
		if err != nil {
			errs[i] = publishFailure(topic, err, definite(err, c.began, c.driver.wire.traffic()))
			failed, missing = true, missing || isMissing(err)
			if errors.Is(err, kerr.MessageTooLarge) {
				if size := recordSize(&c.records[i]); size+batchOverhead <= int(c.limit) { // else the client has refused it
					large = max(large, size)
				}
			}
		}
	}
	c.mu.Unlock()
	if missing { // deleted since it was looked up
		c.driver.topics.forget(topic)
	}
	if !failed {
		return nil
	}
	if large > 0 {
		c.blameBatches(ctx, topic, large, errs)
	}
	return &bus.PublishError{Errs: errs}
}
