package bus

import (
	"fmt"
	"time"
)

// PublishOption sets a part of the message that carries an event.
type PublishOption func(*Message)

// WithKey sets the key. It overrides [Keyer].
func WithKey(k string) PublishOption { return func(m *Message) { m.Key = k } }

// WithID sets the id. Defaults to [NewID].
func WithID(id string) PublishOption { return func(m *Message) { m.ID = id } }

// WithType sets the type. It overrides [Typer].
func WithType(t string) PublishOption { return func(m *Message) { m.Type = t } }

// WithSubject sets the subject.
func WithSubject(s string) PublishOption { return func(m *Message) { m.Subject = s } }

// WithTime sets the time of the event. Defaults to now.
func WithTime(t time.Time) PublishOption { return func(m *Message) { m.Time = t } }

// WithHeader adds a header.
func WithHeader(name, value string) PublishOption {
	return func(m *Message) { m.Headers.Add(name, value) }
}

// WithDeliverAt delivers the message at t or later, to every group. Until then it is parked, and
// the other messages of its key go on. When it is due, it is like a message just published. On a
// broker that cannot park ([Capabilities]), each group's router holds it in memory. A foreign
// consumer of the topic sees it at once.
//
// If the message has a key, a [Cancellation] takes it back.
func WithDeliverAt(t time.Time) PublishOption {
	return WithHeader(HeaderDeliverAt, t.UTC().Format(time.RFC3339Nano))
}

// WithDelay is [WithDeliverAt] with the time d from now.
func WithDelay(d time.Duration) PublishOption { return WithDeliverAt(time.Now().Add(d)) }

// HeaderDeliverAt is the header of [WithDeliverAt]: a time in RFC 3339.
const HeaderDeliverAt = "deliverat"

func deliverAt(m *Message) (time.Time, error) {
	text := m.Headers.Get(HeaderDeliverAt)
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("header %s is %q: want a time like %s", HeaderDeliverAt, text, time.RFC3339)
	}
	return t, nil
}

// Headers that name a message's cause. They travel as CloudEvents extensions.
const (
	HeaderCorrelationID = "correlationid"
	HeaderCausationID   = "causationid"
)

// WithCause names the message that led to this one. Its id becomes the causation id. Its
// correlation id, or else its id, becomes the correlation id. Its trace context goes along too,
// unless the message has one. In a batch handler, Emit needs it.
func WithCause(cause *Message) PublishOption {
	return func(m *Message) { setCause(&m.Headers, cause) }
}

func setCause(h *Headers, cause *Message) {
	correlation := cause.Headers.Get(HeaderCorrelationID)
	if correlation == "" {
		correlation = cause.ID
	}
	h.Set(HeaderCorrelationID, correlation)
	h.Set(HeaderCausationID, cause.ID)
	for _, name := range TraceHeaders {
		if v := cause.Headers.Get(name); v != "" && !h.has(name) {
			h.Add(name, v)
		}
	}
}

// TraceHeaders are the headers of the W3C trace context and baggage. They travel under their own
// names.
var TraceHeaders = [...]string{"traceparent", "tracestate", "baggage"}
