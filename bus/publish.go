package bus

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
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

// PublishAll publishes many events in one call. Its error is a *PublishError, index-aligned with
// events.
func PublishAll[T any](ctx context.Context, p Publisher, topic string, events []T, opts ...PublishOption) error {
	enc, ok := p.(interface {
		encode(event any, opts []PublishOption) (*Message, error)
	})
	if !ok {
		errs := make([]error, len(events))
		for i := range events {
			errs[i] = p.Publish(ctx, topic, events[i], opts...)
		}
		if Each(errs) == nil {
			return nil
		}
		return &PublishError{errs}
	}
	msgs := make([]*Message, len(events))
	for i := range events {
		m, err := enc.encode(events[i], opts)
		if err != nil {
			errs := failAll(len(events), fmt.Errorf("publish %q: not sent, because event %d cannot be encoded: %w", topic, i, ErrInvalid))
			errs.Errs[i] = fmt.Errorf("publish %q: %w", topic, err)
			return errs
		}
		msgs[i] = m
	}
	return p.PublishMessages(ctx, topic, msgs...)
}

// encode makes the message of an event. A message is copied, so that the options do not change the
// caller's.
func (b *Bus) encode(event any, opts []PublishOption) (*Message, error) {
	var m *Message
	switch e := event.(type) {
	case *Message:
		c := *e
		m = &c
	case Message:
		m = &e
	case interface{ message() (*Message, error) }: // a Cancellation
		var err error
		if m, err = e.message(); err != nil {
			return nil, err
		}
	default:
		codec := b.options.codecs[0]
		data, err := codec.Marshal(event)
		if err != nil {
			return nil, fmt.Errorf("%w: encode %T as %s: %w", ErrInvalid, event, codec.ContentType(), err)
		}
		m = &Message{Type: typeNameOf(event), ContentType: codec.ContentType(), Payload: data}
		if k, ok := event.(Keyer); ok {
			m.Key = k.EventKey()
		}
	}
	if len(opts) > 0 {
		m.Headers = slices.Clone(m.Headers) // options may write into it
	}
	for _, opt := range opts {
		opt(m)
	}
	return m, nil
}

// complete fills empty fields and checks the limits that every broker shares.
func (b *Bus) complete(m *Message, now time.Time) error {
	if m == nil {
		return fmt.Errorf("%w: the message is nil", ErrInvalid)
	}
	if m.ID == "" {
		m.ID = newID(now)
	} else if err := checkText("ID", m.ID); err != nil {
		return err
	}
	if m.Time.IsZero() {
		m.Time = now
	} else if err := checkTime("Time", m.Time); err != nil {
		return err
	}
	if m.Source == "" {
		m.Source = b.options.source
	} else if err := checkText("Source", m.Source); err != nil {
		return err
	}
	if err := checkText("Type", m.Type); err != nil {
		return err
	}
	if err := checkText("Subject", m.Subject); err != nil {
		return err
	}
	if err := checkText("ContentType", m.ContentType); err != nil {
		return err
	}
	for i := range m.Headers {
		if err := checkHeader(m.Headers[i].Name); err != nil {
			return err
		}
	}
	if len(m.Headers) > 0 {
		if _, err := deliverAt(m); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if len(m.Key) > maxText {
		return fmt.Errorf("%w: Key has %d bytes: want at most %d", ErrInvalid, len(m.Key), maxText)
	}
	if b.limit > 0 && m.Size() > b.limit {
		return fmt.Errorf("%w: %d bytes with its headers: this bus takes at most %d", ErrTooLarge, m.Size(), b.limit)
	}
	return nil
}

// maxText is the limit of AMQP's short fields, and so the limit on every broker.
const maxText = 255

func checkID(id string) error {
	if id == "" {
		return fmt.Errorf("%w: the message has no ID", ErrInvalid)
	}
	return checkText("ID", id)
}

// checkTime refuses years that RFC 3339, and so the wire form, cannot hold.
func checkTime(field string, t time.Time) error {
	for _, year := range []int{t.Year(), t.UTC().Year()} {
		if year < 0 || year > 9999 {
			return fmt.Errorf("%w: %s is in the year %d: want 0 to 9999", ErrInvalid, field, year)
		}
	}
	return nil
}

func checkText(field, text string) error {
	if len(text) > maxText || !plainText(text) {
		return fmt.Errorf("%w: %s is %.40q: want at most %d bytes of UTF-8 without control characters", ErrInvalid, field, text, maxText)
	}
	return nil
}

// plainText is true for valid UTF-8 without control characters. The loop over bytes is enough for
// nearly all texts.
func plainText(s string) bool {
	ascii := true
	for i := range len(s) {
		c := s[i]
		if c < 0x20 || c == 0x7f {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	return ascii || utf8.ValidString(s)
}

// reserved are the header names under which drivers write the message's own fields.
var reserved = []string{"ce_", "ce-", "cloudevents_", "cloudevents:", "millrace-"}

func checkHeader(name string) error {
	if name == "" || len(name) > maxText || !utf8.ValidString(name) || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%w: header name %.40q: want 1 to %d bytes of UTF-8", ErrInvalid, name, maxText)
	}
	if len(name) < 3 || !strings.ContainsAny(name[:1], "cCmM") { // nearly all names: no reserved one can begin so
		return nil
	}
	lower := strings.ToLower(name)
	for _, prefix := range reserved {
		if strings.HasPrefix(lower, prefix) {
			return fmt.Errorf("%w: header name %q: names that begin with %q are reserved for the message's own fields", ErrInvalid, name, prefix)
		}
	}
	if lower == "content-type" {
		return fmt.Errorf("%w: header name %q is reserved: set ContentType", ErrInvalid, name)
	}
	return nil
}

// CheckName reports a mistake in the name of a topic or group. The error calls the name by the word
// in what. Every broker allows 1 to 200 of the characters a-z A-Z 0-9 . _ -, but not "." or "..".
func CheckName(what, name string) error {
	bad := name == "" || len(name) > 200 || name == "." || name == ".."
	for i := 0; i < len(name) && !bad; i++ {
		c := name[i]
		bad = !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if bad {
		return fmt.Errorf("%w: %s name %.60q: want 1 to 200 of the characters a-z A-Z 0-9 . _ -", ErrInvalid, what, name)
	}
	return nil
}
