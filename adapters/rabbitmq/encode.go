package rabbitmq

import (
	"fmt"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/cloudevents"
)

// attributes are named as the CloudEvents protocol binding says.
var attributes = cloudevents.NewNames("cloudEvents_")

// Headers of our own, beside the CloudEvents attributes.
const (
	// keyHeader holds the message's key.
	keyHeader = "millrace-key"
	// tombstoneHeader marks a message with a nil payload.
	tombstoneHeader = "millrace-tombstone"
	// orderHeader lists the headers' names in their order, unless the order is alphabetical: an
	// AMQP table has no order, and holds a name once.
	orderHeader = "millrace-order"
	// escapePrefix is put before the names of headers that the broker acts upon or writes itself.
	escapePrefix = "millrace-header-"
	// markerHeader is in records that this driver sends to itself in a group's queues.
	markerHeader = "millrace-marker"
)

// brokersOwn are header names that mean something to RabbitMQ. CC and BCC route the message to
// further queues, and close the channel if they are no lists. RabbitMQ writes the other headers
// itself.
var brokersOwn = []string{"CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count"}

// encode makes the publishing of a message. Its headers must fit into one frame of at most frame
// bytes (0 is any): a larger frame ends the connection. The caller recycles the publishing's
// Headers.
func encode(m *bus.Message, frame int) (amqp.Publishing, error) {
	t := amqplink.NewTable()
	size := 64 // fixed fields and frame
	set := func(name string, value any, n int) {
		t[name] = value
		size += len(name) + n + 8
	}
	cloudevents.Each(m, func(name, value string) { set(attributes.Of(name), value, len(value)) })
	if m.Key != "" {
		set(keyHeader, m.Key, len(m.Key))
	}
	if m.Payload == nil {
		set(tombstoneHeader, true, 1)
	}
	sorted, n := encodeHeaders(t, m.Headers)
	size += n
	if !sorted {
		names := make([]any, len(m.Headers))
		n := 0
		for i := range m.Headers {
			names[i] = m.Headers[i].Name
			n += len(m.Headers[i].Name) + 8
		}
		set(orderHeader, names, n)
	}
	p := amqp.Publishing{
		Headers: t, ContentType: m.ContentType, DeliveryMode: amqp.Persistent, MessageId: m.ID, Type: m.Type, Body: m.Payload,
	}
	if m.Time.Unix() > 0 { // AMQP has no other times; this is for other software, the attribute has the full precision
		p.Timestamp = m.Time
	}
	err := checkShort(m)
	if size += len(m.ContentType) + len(m.ID) + len(m.Type); err == nil && frame > 0 && size > frame {
		err = fmt.Errorf("%w: %d bytes of headers: one frame of this broker takes %d", bus.ErrTooLarge, size, frame)
	}
	if err != nil {
		amqplink.Recycle(t)
		return amqp.Publishing{}, err
	}
	return p, nil
}

// encodeHeaders adds headers to t: one value as a string, repeated values as a list. It returns
// their size, and whether reading them back in alphabetical order gives the order that they have.
func encodeHeaders(t amqp.Table, headers bus.Headers) (sorted bool, size int) {
	sorted = true
	for i := range headers {
		h := &headers[i]
		if i > 0 && h.Name < headers[i-1].Name {
			sorted = false
		}
		name := wireName(h.Name)
		size += len(name) + len(h.Value) + 16
		switch before := t[name].(type) {
		case nil:
			t[name] = h.Value
		case []any:
			t[name] = append(before, h.Value)
		default:
			t[name] = []any{before, h.Value}
		}
	}
	return sorted, size
}

func wireName(header string) string {
	if cloudevents.IsExtension(header) {
		return attributes.Of(header)
	}
	if slices.Contains(brokersOwn, header) {
		return escapePrefix + header
	}
	return header
}

// checkShort finds values that do not fit into AMQP's short strings. The bus has checked them. A
// driver that is used without a bus must not lose its connection to them: the client library closes
// it.
func checkShort(m *bus.Message) error {
	const limit = 255
	for _, s := range [...]string{m.ID, m.Type, m.ContentType} {
		if len(s) > limit {
			return fmt.Errorf("%w: %.40q has %d bytes: want at most %d", bus.ErrInvalid, s, len(s), limit)
		}
	}
	for i := range m.Headers {
		name := m.Headers[i].Name
		if len(wireName(name)) > limit || strings.HasPrefix(name, "millrace-") {
			return fmt.Errorf("%w: header name %.40q: want at most %d bytes, and no reserved prefix", bus.ErrInvalid, name, limit)
		}
	}
	return nil
}
