package rabbitmq

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Stored messages are poisoned or parked messages with facts about them. A stored message is
// written like any other, but for the tail of its body. The tail holds the facts, the message's
// headers, and texts that are too long for AMQP.

// Headers of stored messages.
const (
	// sizeHeader is the size of the payload, behind which the tail follows.
	sizeHeader = "millrace-size"
	// longHeader says that the key is in the tail; the header has its hash.
	longHeader = "millrace-long"
)

const (
	// shortText is the longest text that AMQP's own fields take, in bytes.
	shortText = 255
	// headerText is the size up to which a text without such a field travels as a header: all
	// headers must fit into one frame.
	headerText = 16 << 10
	// storedRoom is how much larger than its message a stored message may be: headers grow by a
	// third, and a failure has its text and stack.
	storedRoom = 256 << 10
)

type storedTail struct {
	Facts   json.RawMessage   `json:"facts"`
	Headers [][2][]byte       `json:"headers,omitempty"` // any bytes
	Long    map[string][]byte `json:"long,omitempty"`    // by the names of boundedTexts
}

// boundedText is a field of a message that may be too long for AMQP. Messages of other software can
// have long texts: a structured event is all in the body.
type boundedText struct {
	name  string
	value *string
	most  int
}

func boundedTexts(m *bus.Message) [6]boundedText {
	return [...]boundedText{
		{"id", &m.ID, shortText},
		{"type", &m.Type, shortText},
		{"contenttype", &m.ContentType, shortText},
		{"source", &m.Source, headerText},
		{"subject", &m.Subject, headerText},
		{"key", &m.Key, headerText},
	}
}

// shorten is text, or its hash if it has more bytes than most.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text)))
}

// storedID is the message id of a stored message's record.
func storedID(m *bus.Message) string { return shorten(m.ID, shortText) }

// encodeStored makes the publishing of a stored message. Its Headers have room for a few more.
func encodeStored(m *bus.Message, facts any) (amqp.Publishing, error) {
	about, err := json.Marshal(facts)
	if err != nil {
		return amqp.Publishing{}, err
	}
	tail := storedTail{Facts: about}
	for _, h := range m.Headers {
		tail.Headers = append(tail.Headers, [2][]byte{[]byte(h.Name), []byte(h.Value)})
	}
	bare := *m
	bare.Headers = nil
	for _, t := range boundedTexts(&bare) {
		if short := shorten(*t.value, t.most); short != *t.value {
			if tail.Long == nil {
				tail.Long = map[string][]byte{}
			}
			tail.Long[t.name], *t.value = []byte(*t.value), short
		}
	}
	end, err := json.Marshal(tail)
	if err != nil {
		return amqp.Publishing{}, err
	}
	pub, err := encode(&bare, amqplink.FrameSize-1024)
	if err != nil {
		return pub, err
	}
	pub.Headers[sizeHeader] = int64(len(m.Payload))
	if bare.Key != m.Key {
		pub.Headers[longHeader] = true
	}
	pub.Body = append(append(make([]byte, 0, len(m.Payload)+len(end)), m.Payload...), end...)
	return pub, nil
}

// splitStored returns the size of a stored message's payload, and its tail.
func splitStored(d *amqp.Delivery) (size int64, tail storedTail, err error) {
	size, ok := d.Headers[sizeHeader].(int64)
	if !ok || size < 0 || size > int64(len(d.Body)) {
		return 0, tail, fmt.Errorf("stored message %q: the payload has %d bytes by its header, and the record %d", d.MessageId, size, len(d.Body))
	}
	if err := json.Unmarshal(d.Body[size:], &tail); err != nil {
		return 0, tail, fmt.Errorf("stored message %q: %w", d.MessageId, err)
	}
	return size, tail, nil
}

// decodeStored returns the message, and fills facts. It takes away the delivery's headers with
// these names.
func decodeStored(d *amqp.Delivery, facts any, own ...string) (*bus.Message, error) {
	size, tail, err := splitStored(d)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(tail.Facts, facts); err != nil {
		return nil, fmt.Errorf("stored message %q: %w", d.MessageId, err)
	}
	delete(d.Headers, sizeHeader)
	delete(d.Headers, longHeader)
	for _, name := range own {
		delete(d.Headers, name)
	}
	d.Body = d.Body[:size:size]
	m := decode(d)
	for _, h := range tail.Headers {
		m.Headers.Add(string(h[0]), string(h[1]))
	}
	for _, t := range boundedTexts(m) {
		if long, ok := tail.Long[t.name]; ok {
			*t.value = string(long)
		}
	}
	return m, nil
}

// storedKey is the key of a stored message.
func storedKey(d *amqp.Delivery) string {
	if long, _ := d.Headers[longHeader].(bool); long {
		if _, tail, err := splitStored(d); err == nil {
			return string(tail.Long["key"])
		}
	}
	return text(d.Headers[keyHeader])
}

// unreadable is a stored message that cannot be decoded: the payload has the record's own bytes.
// Its content type says falsely that it is an event in structured mode, so that no handler takes it
// for something else.
func unreadable(d *amqp.Delivery, id string, err error) (*bus.Message, *bus.Failure) {
	m := &bus.Message{ID: id, Type: d.Type, Key: text(d.Headers[keyHeader]), Time: d.Timestamp, ContentType: "application/cloudevents+json", Payload: d.Body}
	if m.Time.IsZero() {
		m.Time = time.Now()
	}
	return m, &bus.Failure{Class: driver.Unreadable, Text: err.Error(), First: m.Time, Last: m.Time}
}
