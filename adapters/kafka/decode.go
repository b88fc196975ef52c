package kafka

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/cloudevents"
)

// Messages that come together share small slabs: these constants bound a slab's messages and bytes.
// The client's buffers hold whole batches of up to megabytes. A single key kept by a handler, or
// one message held for its retry, would keep such a batch alive.
const (
	slabMessages = 64
	slabBytes    = 16 << 10
)

// slab is the memory of the messages that are decoded next.
type slab struct {
	messages []bus.Message
	text     strings.Builder
	payload  []byte
}

// decoder turns records into messages.
type decoder struct {
	slab
	// words are texts that repeat from record to record. The next record most likely has the last
	// source, type and content type.
	words                    map[string]string
	source, typ, contentType string
	timeText                 []byte
	time                     time.Time
}

// maxWords bounds how many texts are remembered of a topic with ever new types.
const maxWords = 1024

// recordSize is the size in bytes that a record counts against bounds, as bus.Message.Size does
// once the record is decoded.
func recordSize(r *kgo.Record) int {
	n := 256 + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += 32 + len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

// reserve makes memory for the first records of a batch, and returns for how many.
func (d *decoder) reserve(batch []accepted) int {
	n, text, payload := 0, 0, 0
	for i := range batch {
		r := batch[i].record
		t, p := len(r.Key), len(r.Value)
		for j := range r.Headers {
			t += len(r.Headers[j].Value)
		}
		if n > 0 && (n == slabMessages || text+t+payload+p > slabBytes) {
			break
		}
		n, text, payload = n+1, text+t, payload+p
	}
	d.messages = make([]bus.Message, n)
	d.text = strings.Builder{}
	d.text.Grow(text)
	d.payload = make([]byte, 0, payload)
	return n
}

// message decodes the next record for which memory was reserved. The message shares nothing with
// the record.
func (d *decoder) message(r *kgo.Record) *bus.Message {
	m := &d.messages[0]
	d.messages = d.messages[1:]
	m.Key = d.string(r.Key)
	if r.Value != nil {
		n := len(d.payload)
		d.payload = append(d.payload, r.Value...)
		m.Payload = d.payload[n:len(d.payload):len(d.payload)]
	}
	own := 0
	for i := range r.Headers {
		if h := &r.Headers[i]; !d.field(m, h) {
			own++
		}
	}
	if own > 0 {
		m.Headers = make(bus.Headers, 0, own)
		for i := range r.Headers {
			d.header(m, &r.Headers[i])
		}
	}
	if m.ID == "" {
		m.ID = r.Topic + "/" + strconv.Itoa(int(r.Partition)) + "/" + strconv.FormatInt(r.Offset, 10)
	}
	if m.Time.IsZero() {
		m.Time = r.Timestamp
	}
	return m
}

// field sets the field of m that the header holds, and returns false if it is one of the message's
// own headers.
func (d *decoder) field(m *bus.Message, h *kgo.RecordHeader) bool {
	switch h.Key {
	case headerSpecVersion:
	case headerID:
		m.ID = d.string(h.Value)
	case headerSource:
		m.Source = d.word(&d.source, h.Value)
	case headerType:
		m.Type = d.word(&d.typ, h.Value)
	case headerSubject:
		m.Subject = d.string(h.Value)
	case headerContentType:
		m.ContentType = d.word(&d.contentType, h.Value)
	case headerTime:
		t, ok := d.parseTime(h.Value)
		if !ok { // a foreign producer's mistake is no reason to lose its header
			return false
		}
		m.Time = t
	default:
		return false
	}
	return true
}

// header adds one of the message's own headers. Attributes that have no field lose the prefix.
func (d *decoder) header(m *bus.Message, h *kgo.RecordHeader) {
	switch h.Key {
	case headerSpecVersion, headerID, headerSource, headerType, headerSubject, headerContentType:
		return
	case headerTime:
		if _, ok := d.parseTime(h.Value); ok {
			return
		}
	}
	if name, ok := cloudevents.Attribute(h.Key); ok {
		cloudevents.Set(m, name, d.string(h.Value))
		return
	}
	m.Headers = append(m.Headers, bus.Header{Name: h.Key, Value: d.string(h.Value)})
}

// string copies b into the slab's text, for which reserve made room.
func (d *decoder) string(b []byte) string {
	n := d.text.Len()
	d.text.Write(b)
	return d.text.String()[n:]
}

// word returns a string that is likely to repeat; last is the field's previous string.
func (d *decoder) word(last *string, b []byte) string {
	if *last == string(b) {
		return *last
	}
	w, ok := d.words[string(b)]
	if !ok {
		if d.words == nil || len(d.words) >= maxWords {
			d.words = map[string]string{}
		}
		w = string(b)
		d.words[w] = w
	}
	*last = w
	return w
}

// parseTime parses a time; messages that were published by one call have the same.
func (d *decoder) parseTime(b []byte) (time.Time, bool) {
	if len(b) > 0 && bytes.Equal(b, d.timeText) {
		return d.time, true
	}
	t, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return t, false
	}
	d.timeText, d.time = append(d.timeText[:0], b...), t
	return t, true
}
