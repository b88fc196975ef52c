package watermill

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// PublisherConfig configures a [Publisher]. The zero value is its default.
type PublisherConfig struct {
	// Key gives a message's key, as the partition key of Watermill's Kafka package does. Defaults
	// to the metadata [KeyMetadata], which a [Subscriber] of this package fills.
	Key func(topic string, msg *message.Message) (string, error)
}

// Publisher makes a bus a Watermill publisher. Publish returns nil once all messages are durable;
// otherwise the error is a *[bus.PublishError] that says which are not. Messages of one call with
// contexts that end together are published in one batch, in the first message's context. An empty
// UUID becomes a new id. Close ends the publisher, not the bus.
func Publisher(b *bus.Bus, c PublisherConfig) message.Publisher { return &publisher{bus: b, config: c} }

type publisher struct {
	bus    *bus.Bus
	config PublisherConfig
	closed atomic.Bool
}

// Publish implements message.Publisher.
func (p *publisher) Publish(topic string, ws ...*message.Message) error {
	if p.closed.Load() {
		return driver.FailAll(len(ws), fmt.Errorf("publish %q: %w", topic, bus.ErrClosed))
	}
	msgs := make([]*bus.Message, len(ws))
	for i, w := range ws {
		msgs[i] = FromWatermill(w)
		if p.config.Key == nil {
			continue
		}
		key, err := p.config.Key(topic, w)
		if err != nil { // before anything is published
			return driver.FailAll(len(ws), fmt.Errorf("publish %q: key of message %s: %w", topic, w.UUID, err))
		}
		msgs[i].Key = key
	}
	errs := make([]error, len(ws))
	failed := false
	for from := 0; from < len(ws) && !failed; {
		ctx := ws[from].Context()
		to := from + 1
		for to < len(ws) && ws[to].Context().Done() == ctx.Done() {
			to++
		}
		if err := p.bus.PublishMessages(ctx, topic, msgs[from:to]...); err != nil {
			failed = true // and the later ones are not tried, as everywhere in Watermill
			for i := range errs[from:to] {
				errs[from+i] = err
			}
			if pe, ok := errors.AsType[*bus.PublishError](err); ok {
				copy(errs[from:to], pe.Errs)
			}
			for i := to; i < len(ws); i++ {
				errs[i] = fmt.Errorf("publish %q: not tried, because an earlier message failed: %w", topic, err)
			}
		}
		from = to
	}
	if failed {
		return &bus.PublishError{Errs: errs}
	}
	return nil
}

// Close implements message.Publisher.
func (p *publisher) Close() error {
	p.closed.Store(true)
	return nil
}
