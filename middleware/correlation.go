package middleware

import (
	"context"

	"github.com/millrace-go/millrace/bus"
)

// Correlation passes headers on to every message that is published or emitted under the handler's
// context:
//
//   - the correlation id of the message; without one, the message's id, which then begins the
//     chain,
//   - the message's id as causation id,
//   - the W3C trace context (traceparent, tracestate, baggage).
//
// A message keeps a header of its own. A batch, also of a single message, passes nothing on by
// itself: use bus.WithCause for each output, with or without Correlation.
//
// Put it outside of all middleware that publishes.
func Correlation() bus.Middleware {
	return func(next bus.Handler) bus.Handler {
		c := correlating{next}
		if batch, ok := next.(bus.BatchHandler); ok {
			return correlatingBatch{c, batch}
		}
		return c
	}
}

type correlating struct{ next bus.Handler }

// Handle implements bus.Handler.
func (c correlating) Handle(ctx context.Context, m *bus.Message) error {
	return c.next.Handle(bus.ContextWithCause(ctx, m), m)
}

type correlatingBatch struct {
	correlating
	batch bus.BatchHandler
}

// HandleBatch implements bus.BatchHandler.
func (c correlatingBatch) HandleBatch(ctx context.Context, ms []*bus.Message) error {
	return c.batch.HandleBatch(ctx, ms)
}
