package bus

import (
	"context"
	"fmt"
	"time"
)

// Encode makes the messages of events as [Bus.Publish] does, and does not publish them. It takes
// what Publish takes: values, which the first codec encodes, and messages, which it copies. The
// result is index-aligned with the events: with the options, the headers of ctx, an ID and a time,
// and checked. The error names the first event that is not valid; it wraps [ErrInvalid] or
// [ErrTooLarge]. Encode may be called concurrently.
//
// Use it for messages that are stored by other means than publishing, or to know their ids before,
// so that they can be sent again when an outcome is not known.
func (b *Bus) Encode(ctx context.Context, events []any, opts ...PublishOption) ([]*Message, error) {
	msgs := make([]*Message, len(events))
	now := time.Now()
	for i, e := range events {
		m, err := b.encode(e, opts)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		msgs[i] = m
	}
	addOutgoing(ctx, msgs)
	for i, m := range msgs {
		if err := b.complete(m, now); err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
	}
	return msgs, nil
}
