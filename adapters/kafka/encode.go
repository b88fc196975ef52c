package kafka

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/cloudevents"
)

// The headers of CloudEvents' binary mode, as the Kafka protocol binding names them.
const (
	headerSpecVersion = "ce_specversion"
	headerID          = "ce_id"
	headerSource      = "ce_source"
	headerType        = "ce_type"
	headerSubject     = "ce_subject"
	headerTime        = "ce_time"
	headerContentType = "content-type"
)

// attributes names the extension attributes.
var attributes = cloudevents.NewNames("ce_")

// specVersion is shared by all records: the client only reads header values.
var specVersion = []byte("1.0")

// encode makes the records of messages, and returns their size in bytes. It uses one slab for the
// records, one for the headers, and one for their texts. So a call costs a handful of allocations
// however many messages it has.
//
// It writes the attributes of cloudevents.Each without its strings; a test holds the two together.
func encode(topic string, msgs []*bus.Message) ([]kgo.Record, int) {
	var headers, text, size int
	for _, m := range msgs {
		headers += 4 + len(m.Headers)
		for _, optional := range [...]string{m.Type, m.Subject, m.ContentType} {
			if optional != "" {
				headers++
			}
		}
		n := len(m.Key) + len(m.ID) + len(m.Source) + len(m.Type) + len(m.Subject) + len(m.ContentType)
		for i := range m.Headers {
			n += len(m.Headers[i].Value)
		}
		text += n
		size += n + len(m.Payload)
	}
	e := encoder{
		headers: make([]kgo.RecordHeader, 0, headers),
		// Messages of one call mostly have one time; where not, the text grows.
		text: make([]byte, 0, text+len(time.RFC3339Nano)),
	}
	records := make([]kgo.Record, len(msgs))
	for i, m := range msgs {
		r := &records[i]
		r.Topic = topic
		r.Value = m.Payload
		if m.Key != "" {
			r.Key = e.bytes(m.Key)
		}
		r.Headers = e.fields(m)
	}
	return records, size + len(msgs)*batchOverhead
}

type encoder struct {
	headers []kgo.RecordHeader
	text    []byte
	time    time.Time // the last message's
	timeTxt []byte
}

// bytes copies s. When the text has to grow, the slices handed out before stay in the former array.
func (e *encoder) bytes(s string) []byte {
	n := len(e.text)
	e.text = append(e.text, s...)
	return e.text[n:len(e.text):len(e.text)]
}

func (e *encoder) add(name, value string) {
	e.headers = append(e.headers, kgo.RecordHeader{Key: name, Value: e.bytes(value)})
}

// fields are the headers of m: its fields, then its own headers in their order.
func (e *encoder) fields(m *bus.Message) []kgo.RecordHeader {
	n := len(e.headers)
	e.headers = append(e.headers, kgo.RecordHeader{Key: headerSpecVersion, Value: specVersion})
	e.add(headerID, m.ID)
	e.add(headerSource, m.Source)
	if m.Type != "" {
		e.add(headerType, m.Type)
	}
	if m.Subject != "" {
		e.add(headerSubject, m.Subject)
	}
	e.headers = append(e.headers, kgo.RecordHeader{Key: headerTime, Value: e.timeText(m.Time)})
	if m.ContentType != "" {
		e.add(headerContentType, m.ContentType)
	}
	for i := range m.Headers {
		h := &m.Headers[i]
		name := h.Name
		if cloudevents.IsExtension(name) {
			name = attributes.Of(name)
		}
		e.add(name, h.Value)
	}
	return e.headers[n:len(e.headers):len(e.headers)]
}

func (e *encoder) timeText(t time.Time) []byte {
	if e.timeTxt == nil || !t.Equal(e.time) {
		n := len(e.text)
		utc := t.UTC()
		if y := utc.Year(); y < 0 || y > 9999 { // no reader takes it; another program's own zone may have kept it within
			utc = t
		}
		e.text = utc.AppendFormat(e.text, time.RFC3339Nano)
		e.time, e.timeTxt = t, e.text[n:len(e.text):len(e.text)]
	}
	return e.timeTxt
}
