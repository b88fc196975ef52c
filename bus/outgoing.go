package bus

import "context"

type outgoingKey struct{}

// ContextWithHeaders returns a context whose headers are added to every message that is published or emitted under
// it, unless the message has a header of that name. It adds to those of the contexts around it. Middleware uses it to
// pass on correlation and trace context.
func ContextWithHeaders(ctx context.Context, headers ...Header) context.Context {
	if outer := outgoing(ctx); len(outer) > 0 {
		all := Headers(append([]Header(nil), headers...))
		headers = all.withDefaults(outer)
	}
	return context.WithValue(ctx, outgoingKey{}, Headers(headers))
}

// ContextWithCause is ContextWithHeaders with what [WithCause] tells: what is published or emitted under it was led to
// by cause, and is in its trace.
func ContextWithCause(ctx context.Context, cause *Message) context.Context {
	return &causeContext{ctx, cause}
}

// causeContext makes the headers when they are asked for: most handlers publish less than they are called.
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

// withDefaults appends those of defaults whose name h lacks; it never writes into h's array.
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

// addOutgoing adds the context's headers to messages that are about to be published.
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
