package rabbitmq

import (
	"encoding/json"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// Stored messages are those of the poison queue and those that are parked: a message with facts about it. It is written
// like any other, but for the tail of its body: the facts, and the message's headers, both of which may be larger
// than AMQP's headers may be.

// sizeHeader is the size of the payload, behind which the tail follows.
const sizeHeader = "millrace-size"

type storedTail struct {
	Facts   json.RawMessage `json:"facts"`
	Headers [][2][]byte     `json:"headers,omitempty"` // any bytes
}

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
	end, err := json.Marshal(tail)
	if err != nil {
		return amqp.Publishing{}, err
	}
	bare := *m
	bare.Headers = nil
	pub, err := encode(&bare, frameSize-1024)
	if err != nil {
		return pub, err
	}
	pub.Headers[sizeHeader] = int64(len(m.Payload))
	pub.Body = append(append(make([]byte, 0, len(m.Payload)+len(end)), m.Payload...), end...)
	return pub, nil
}

// decodeStored returns the message, and fills facts. It takes away the delivery's headers with these names.
func decodeStored(d *amqp.Delivery, facts any, own ...string) (*bus.Message, error) {
	size, ok := d.Headers[sizeHeader].(int64)
	if !ok || size < 0 || size > int64(len(d.Body)) {
		return nil, fmt.Errorf("stored message %q: a payload of %d in %d bytes", d.MessageId, size, len(d.Body))
	}
	var tail storedTail
	err := json.Unmarshal(d.Body[size:], &tail)
	if err == nil {
		err = json.Unmarshal(tail.Facts, facts)
	}
	if err != nil {
		return nil, fmt.Errorf("stored message %q: %w", d.MessageId, err)
	}
	delete(d.Headers, sizeHeader)
	for _, name := range own {
		delete(d.Headers, name)
	}
	d.Body = d.Body[:size:size]
	m := decode(d)
	for _, h := range tail.Headers {
		m.Headers.Add(string(h[0]), string(h[1]))
	}
	return m, nil
}
