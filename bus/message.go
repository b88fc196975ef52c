package bus

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Message is the unit that travels. Fill the fields you need: publishing fills an empty ID, Time
// and Source in place.
//
// A published or received message is shared: treat it as read-only. The memory driver passes the
// same Payload and Headers to every group. [Message.Clone] makes a copy that may be changed.
type Message struct {
	// ID identifies the message for ever, across repeats. Defaults to [NewID].
	ID string
	// Key orders: messages of a topic with equal keys are handled one at a time, in publish order.
	// "" is no key and promises no order. A key may hold any bytes.
	Key string
	// Type is the event type. The router picks the handler by it. It may be empty.
	Type string
	// Source names the publisher (CloudEvents: a URI reference). Defaults to the bus's
	// [WithSource].
	Source string
	// Subject names the event's object in the publisher's own terms. It may be empty.
	Subject string
	// Time is when the event happened. Defaults to the time of publishing; brokers keep at least
	// milliseconds.
	Time time.Time
	// ContentType is the payload's media type. Receivers pick the codec by it. It may be empty.
	ContentType string
	// Headers travel with the message, in this order.
	Headers Headers
	// Payload is the body. nil is a tombstone; every broker distinguishes it from an empty payload.
	Payload []byte
}

// Clone returns a deep copy, which shares nothing with m.
func (m *Message) Clone() *Message {
	c := *m
	c.Headers = slices.Clone(m.Headers)
	if m.Payload != nil {
		c.Payload = append(make([]byte, 0, len(m.Payload)), m.Payload...)
	}
	return &c
}

// messageOverhead is a message's rough cost in memory besides its texts.
const messageOverhead = 256

// Size returns the bytes that m counts against bounds: its payload, texts and headers and a fixed
// overhead.
func (m *Message) Size() int {
	n := messageOverhead + len(m.Payload) + len(m.ID) + len(m.Key) + len(m.Type) + len(m.Source) + len(m.Subject) + len(m.ContentType)
	for i := range m.Headers {
		n += 32 + len(m.Headers[i].Name) + len(m.Headers[i].Value)
	}
	return n
}

// String describes m for logs. It leaves out confidential parts: no payload, no key, no header
// values.
func (m Message) String() string {
	payload := "tombstone"
	if m.Payload != nil {
		payload = strconv.Itoa(len(m.Payload)) + " B"
	}
	return fmt.Sprintf("message %q (type %q, key of %d B, %d headers, payload %s)", m.ID, m.Type, len(m.Key), len(m.Headers), payload)
}

// Header is one header. Its value may hold any bytes.
type Header struct{ Name, Value string }

// Headers is an ordered list of headers; a name may repeat. Names are case-sensitive.
// The zero value is an empty list.
type Headers []Header

// Get returns the first value of name, or "".
func (h Headers) Get(name string) string {
	for i := range h {
		if h[i].Name == name {
			return h[i].Value
		}
	}
	return ""
}

// Values returns all values of name, in order.
func (h Headers) Values(name string) []string {
	var vs []string
	for i := range h {
		if h[i].Name == name {
			vs = append(vs, h[i].Value)
		}
	}
	return vs
}

// Set makes value the only value of name. It takes the place of the first one.
func (h *Headers) Set(name, value string) {
	i := slices.IndexFunc(*h, func(x Header) bool { return x.Name == name })
	if i < 0 {
		h.Add(name, value)
		return
	}
	(*h)[i].Value = value
	rest := slices.DeleteFunc((*h)[i+1:], func(x Header) bool { return x.Name == name })
	*h = (*h)[:i+1+len(rest)]
}

// Add appends a header.
func (h *Headers) Add(name, value string) { *h = append(*h, Header{name, value}) }

// Del removes all values of name.
func (h *Headers) Del(name string) {
	*h = slices.DeleteFunc(*h, func(x Header) bool { return x.Name == name })
}
