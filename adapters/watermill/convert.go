package watermill

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/cloudevents"
)

// Names under which a message travels through Watermill, beside its own headers.
const (
	// KeyMetadata holds the message's key.
	KeyMetadata = "millrace-key"
	// UUIDHeader is where Watermill's default marshalers for Kafka and AMQP keep the UUID.
	UUIDHeader = "_watermill_message_uuid"

	attributePrefix     = "ce_"
	contentTypeMetadata = "content-type"
	// exactMetadata holds the values that metadata cannot hold: see exact. RabbitMQ's driver keeps
	// names in "millrace-" to itself.
	exactMetadata     = "_millrace_exact"
	tombstoneMetadata = "_millrace_tombstone"
	// redeliveredMetadata is watermill-amqp's mark of a message that comes again. It is a fact of the
	// delivery: the message is the same, and another router or a replay must not publish the mark.
	redeliveredMetadata = "_watermill_amqp_redelivered"
)

// exact is the part of a message that metadata (names that do not repeat, without order, in text) cannot say. Watermill
// services read the metadata all the same, with the first value of each name.
type exact struct {
	Key     []byte        `json:"key,omitempty"`
	Headers []exactHeader `json:"headers,omitempty"`
}

type exactHeader struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// ToWatermill makes the Watermill message of m: the id as UUID, the headers as metadata, the key as [KeyMetadata], the
// other fields as CloudEvents attributes ("ce_type"). [FromWatermill] gives the same message back, whatever it holds. The
// payload's memory is shared.
func ToWatermill(m *bus.Message) *message.Message {
	w := message.NewMessage(m.ID, m.Payload)
	headers, x := plain(m.Headers)
	for _, h := range headers {
		name := h.Name
		if cloudevents.IsExtension(name) {
			name = attributePrefix + name
		}
		w.Metadata[name] = h.Value
	}
	cloudevents.Each(m, func(name, value string) {
		if name != "time" || !m.Time.IsZero() {
			w.Metadata[attributePrefix+name] = value
		}
	})
	if m.ContentType != "" {
		w.Metadata[contentTypeMetadata] = m.ContentType
	}
	if m.Key != "" {
		w.Metadata[KeyMetadata] = text(m.Key)
		if w.Metadata[KeyMetadata] != m.Key {
			x.Key = []byte(m.Key)
		}
	}
	if m.Payload == nil {
		w.Metadata[tombstoneMetadata] = "true"
	}
	if value := x.String(); value != "" {
		w.Metadata[exactMetadata] = value
	}
	return w
}

// FromWatermill makes the message of w: UUID as id, metadata as headers in alphabetical order.
// Attributes from [ToWatermill] or another writer of CloudEvents go back into the fields. An empty
// UUID leaves the id that the attributes name, or none. The payload's memory is shared.
func FromWatermill(w *message.Message) *bus.Message {
	m := &bus.Message{Payload: w.Payload, Headers: make(bus.Headers, 0, len(w.Metadata))}
	if m.Payload == nil {
		m.Payload = []byte{} // only a mark makes a tombstone: pub/subs confuse the two
	}
	for name, value := range w.Metadata {
		m.Headers = append(m.Headers, bus.Header{Name: name, Value: value})
	}
	absorb(m)
	if w.UUID != "" && !(len(m.ID) > len(w.UUID) && strings.HasPrefix(m.ID, w.UUID)) { // see Config.UUIDBytes
		m.ID = w.UUID
	}
	return m
}

// plain returns headers in the form of metadata (sorted, each name once, values in text), and the
// losses of this form.
func plain(headers bus.Headers) (bus.Headers, exact) {
	faithful := true
	for i := range headers {
		if i > 0 && headers[i].Name <= headers[i-1].Name || text(headers[i].Value) != headers[i].Value {
			faithful = false
		}
	}
	if faithful {
		return headers, exact{}
	}
	var x exact
	kept := make(bus.Headers, 0, len(headers))
	for _, h := range headers {
		x.Headers = append(x.Headers, exactHeader{h.Name, []byte(h.Value)})
		if !slices.ContainsFunc(kept, func(k bus.Header) bool { return k.Name == h.Name }) {
			kept = append(kept, bus.Header{Name: h.Name, Value: text(h.Value)})
		}
	}
	sortHeaders(kept)
	return kept, x
}

// String is the metadata's value, "" if there is nothing to say.
func (x exact) String() string {
	if x.Key == nil && x.Headers == nil {
		return ""
	}
	data, err := json.Marshal(x)
	if err != nil { // it holds bytes and valid names only
		return ""
	}
	return string(data)
}

// text is s as every pub/sub can carry it in metadata: UTF-8 without NUL, which PostgreSQL refuses.
func text(s string) string {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}

func sortHeaders(headers bus.Headers) {
	slices.SortStableFunc(headers, func(a, b bus.Header) int { return cmp.Compare(a.Name, b.Name) })
}

// absorb moves the values meant for m's fields out of its headers, which were metadata.
func absorb(m *bus.Message) {
	var x exact
	uuid := ""
	headers := m.Headers
	m.Headers = make(bus.Headers, 0, len(headers))
	for _, h := range headers {
		switch h.Name {
		case UUIDHeader:
			uuid = h.Value
		case KeyMetadata:
			m.Key = cmp.Or(m.Key, h.Value)
		case contentTypeMetadata:
			m.ContentType = cmp.Or(m.ContentType, h.Value)
		case redeliveredMetadata:
		case tombstoneMetadata:
			if len(m.Payload) == 0 {
				m.Payload = nil
			}
		case exactMetadata:
			if json.Unmarshal([]byte(h.Value), &x) != nil { // not ours, then
				x = exact{}
				m.Headers = append(m.Headers, h)
			}
		default:
			if attribute, ok := cloudevents.Attribute(h.Name); ok {
				cloudevents.Set(m, attribute, h.Value)
			} else {
				m.Headers = append(m.Headers, h)
			}
		}
	}
	if x.Key != nil {
		m.Key = string(x.Key)
	}
	if x.Headers == nil {
		sortHeaders(m.Headers) // metadata has no order, so the writer's was this one
	} else {
		m.Headers = merge(x.Headers, m.Headers)
	}
	if len(m.Headers) == 0 {
		m.Headers = nil
	}
	m.ID = cmp.Or(uuid, m.ID)
}

// merge returns the headers as they were, and behind them the headers added on the way.
func merge(exactly []exactHeader, seen bus.Headers) bus.Headers {
	var headers bus.Headers
	known := map[string]bool{}
	for _, h := range exactly {
		known[h.Name] = true
		headers = append(headers, bus.Header{Name: h.Name, Value: string(h.Value)})
	}
	for _, h := range seen {
		if !known[h.Name] {
			headers = append(headers, h)
		}
	}
	return headers
}
