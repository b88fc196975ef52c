package middleware

import (
	"context"

	"github.com/millrace-go/millrace/bus"
)

// Correlation passes on, through the handler's context, to everything that is published or emitted under it: the
// correlation id of the message (or, if it has none, the message's id, which then begins the chain), the message's id
// as causation id, and the W3C trace context (traceparent, tracestate, baggage). A batch passes nothing on by itself:
// bus.WithCause does it for each output, with or without Correlation. What carries such a header of its own keeps it.
//
// Put it outside of all middleware that publishes.
func Correlation() bus.Middleware {
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		if c.Len() != 1 {
			return c.Next(ctx)
		}
		for m := range c.Messages() {
			ctx = bus.ContextWithHeaders(ctx, chain(m)...)
		}
		return c.Next(ctx)
	})
}

func chain(m *bus.Message) []bus.Header {
	correlation := m.Headers.Get(bus.HeaderCorrelationID)
	if correlation == "" {
		correlation = m.ID
	}
	headers := append(make([]bus.Header, 0, 5),
		bus.Header{Name: bus.HeaderCorrelationID, Value: correlation},
		bus.Header{Name: bus.HeaderCausationID, Value: m.ID})
	for _, name := range bus.TraceHeaders {
		if v := m.Headers.Get(name); v != "" {
			headers = append(headers, bus.Header{Name: name, Value: v})
		}
	}
	return headers
}
