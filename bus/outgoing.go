package bus

import "context"

type outgoingKey struct{}

// ContextWithHeaders returns a context that adds headers to every message published or emitted
// under it. A message's own header of the same name wins. The headers of outer contexts are added
// too. Middleware uses it to pass on correlation and trace context.
func ContextWithHeaders(ctx context.Context, headers ...Header) context.Context {
	if outer := outgoing(ctx); len(outer) > 0 {
		all := Headers(append([]Header(nil), headers...))
		headers = all.withDefaults(outer)
	}
	return context.WithValue(ctx, outgoingKey{}, Headers(headers))
}

// ContextWithCause is [ContextWithHeaders] with the headers of [WithCause]: messages published or
// emitted under it name cause as their cause, and join its trace.
func ContextWithCause(ctx context.Context, cause *Message) context.Context {
	return &causeContext{ctx, cause}
}

// causeContext makes the headers on demand: most handlers publish less often than they are called.
type causeContext struct {
	context.Context
	cause *Message
}

// Value implements context.Context.
func (c *causeContext) Value(key any) any {
	if key != (outgoingKey{}) {
		return c.Context.Value(key)
	}
	headers := make(Headers, 0, 2+len(TraceHeaders))
	setCause(&headers, c.cause)
	return headers.withDefaults(outgoing(c.Context))
}

func outgoing(ctx context.Context) Headers {
	h, _ := ctx.Value(outgoingKey{}).(Headers)
	return h
}

// withDefaults appends the defaults with a name that h lacks; it never writes into h's array.
func (h Headers) withDefaults(defaults Headers) Headers {
	n := len(h)
	for _, d := range defaults {
		if !h[:n].has(d.Name) {
			h = append(h[:len(h):len(h)], d)
		}
	}
	return h
}

func (h Headers) has(name string) bool {
	for i := range h {
		if h[i].Name == name {
			return true
		}
	}
	return false
}

// addOutgoing adds the context's headers to messages before they are published.
func addOutgoing(ctx context.Context, msgs []*Message) {
	headers := outgoing(ctx)
	if len(headers) == 0 {
		return
	}
	for _, m := range msgs {
		if m != nil {
			m.Headers = m.Headers.withDefaults(headers)
		}
	}
}
