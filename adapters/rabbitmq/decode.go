package rabbitmq

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/cloudevents"
)

// header is a header as it arrived.
type header struct {
	name  string
	value any
}

// decode makes a message of any delivery: ours, or a foreign publisher's with or without
// CloudEvents attributes. It never fails. The AMQP properties fill the fields that the attributes
// leave open.
func decode(d *amqp.Delivery) *bus.Message {
	if m := undecodable(d); m != nil {
		return m
	}
	m := &bus.Message{ContentType: d.ContentType, Payload: d.Body}
	var few [8]header
	rest := few[:0]
	var order []any
	for name, value := range d.Headers {
		switch name {
		case keyHeader:
			m.Key = text(value)
		case tombstoneHeader:
			if len(d.Body) == 0 {
				m.Payload = nil
			}
		case orderHeader:
			order, _ = value.([]any)
		case "x-delivery-count", "x-acquired-count":
			// A quorum queue adds this header to messages that it delivers again; it is not the
			// publisher's.
			if !d.Redelivered || !isInteger(value) {
				rest = append(rest, header{name, value})
			}
		default:
			if attribute, ok := cloudevents.Attribute(name); !ok {
				rest = append(rest, header{strings.TrimPrefix(name, escapePrefix), value})
			} else if isField(attribute) {
				cloudevents.Set(m, attribute, text(value))
			} else {
				rest = append(rest, header{attribute, value})
			}
		}
	}
	rest = fromProperties(m, d, rest)
	if len(rest) > 0 {
		addHeaders(m, rest, order)
	}
	return m
}

// isField says whether an attribute has a field of the message, and does not travel among its
// headers.
func isField(attribute string) bool {
	switch attribute {
	case "id", "source", "specversion", "type", "subject", "time", "datacontenttype":
		return true
	}
	return false
}

// fromProperties fills in from the AMQP properties, and adds properties that have no field to the
// headers.
func fromProperties(m *bus.Message, d *amqp.Delivery, rest []header) []header {
	if m.ID == "" {
		m.ID = d.MessageId
	}
	if m.Type == "" {
		m.Type = d.Type
	}
	if m.Source == "" {
		m.Source = d.AppId
	}
	if m.Time.IsZero() {
		m.Time = d.Timestamp
	}
	if m.Time.IsZero() {
		m.Time = time.Now()
	}
	for _, p := range [...]header{
		{bus.HeaderCorrelationID, d.CorrelationId},
		{"content-encoding", d.ContentEncoding},
		{"reply-to", d.ReplyTo},
		{"user-id", d.UserId},
	} {
		if p.value != "" && !slices.ContainsFunc(rest, func(h header) bool { return h.name == p.name }) {
			rest = append(rest, p)
		}
	}
	return rest
}

// addHeaders adds the headers in the order that the publisher noted. Headers that the publisher did
// not know (the broker's, a relay's) follow in alphabetical order.
func addHeaders(m *bus.Message, rest []header, order []any) {
	slices.SortFunc(rest, func(a, b header) int { return strings.Compare(a.name, b.name) })
	m.Headers = slices.Grow(m.Headers, len(rest))
	if len(order) == 0 {
		for _, h := range rest {
			if v, ok := h.value.(string); ok { // as nearly all are: no list for it
				m.Headers.Add(h.name, v)
				continue
			}
			for _, v := range values(h.value) {
				m.Headers.Add(h.name, v)
			}
		}
		return
	}
	left := make(map[string][]string, len(rest))
	for _, h := range rest {
		left[h.name] = append(left[h.name], values(h.value)...)
	}
	for _, o := range order {
		name := text(o)
		if vs := left[name]; len(vs) > 0 {
			m.Headers.Add(name, vs[0])
			left[name] = vs[1:]
		}
	}
	for _, h := range rest {
		for _, v := range left[h.name] {
			m.Headers.Add(h.name, v)
		}
		left[h.name] = nil
	}
}

// identify gives a foreign message without an id an id of its own. RabbitMQ has no positions that
// last, so the id belongs to this delivery, and changes when the message is delivered again.
func identify(m *bus.Message, topic string, t bus.Token) {
	if m.ID == "" {
		m.ID = driver.TransientID(topic, t)
	}
}

// undecodable returns the message of a delivery with an unreadable header table, or nil if the
// table can be read. The payload is the table with its length, and behind it the body. The content
// type says falsely that the message is an event in structured mode. So the router poisons it as
// undecodable, whatever the body is.
func undecodable(d *amqp.Delivery) *bus.Message {
	table, ok := d.Headers[amqplink.UnreadableHeader].([]byte)
	if !ok {
		return nil
	}
	m := &bus.Message{ContentType: "application/cloudevents+json"}
	m.Payload = binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(table)+len(d.Body)), uint32(len(table)))
	m.Payload = append(append(m.Payload, table...), d.Body...)
	for _, h := range fromProperties(m, d, nil) {
		m.Headers.Add(h.name, text(h.value))
	}
	m.Headers.Add(amqplink.UnreadableHeader, "the client library does not take the table of headers")
	return m
}
