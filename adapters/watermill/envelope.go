package watermill

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// envelope is an entry of the topic of Watermill's forwarder, an outbox: a message and its
// destination.
type envelope struct {
	DestinationTopic string            `json:"destination_topic"`
	UUID             string            `json:"uuid"`
	Payload          []byte            `json:"payload"`
	Metadata         map[string]string `json:"metadata"`
}

// Wrap puts m into an envelope of Watermill's forwarder, which forwards it to topic.
func Wrap(topic string, m *bus.Message) (*bus.Message, error) {
	if err := driver.CheckName("topic", topic); err != nil {
		return nil, err
	}
	w := ToWatermill(m)
	data, err := json.Marshal(envelope{topic, w.UUID, w.Payload, w.Metadata})
	if err != nil {
		return nil, fmt.Errorf("forwarder envelope: %w", err)
	}
	return &bus.Message{ID: bus.NewID(), Key: m.Key, Payload: data}, nil
}

// Unwrap takes the message, and where it is to go, out of an envelope of Watermill's forwarder. Its
// error is permanent.
func Unwrap(wrapped *bus.Message) (topic string, m *bus.Message, err error) {
	var e envelope
	if err := json.Unmarshal(wrapped.Payload, &e); err != nil {
		return "", nil, bus.Permanent(fmt.Errorf("forwarder envelope: %w: %w", bus.ErrUndecodable, err))
	}
	if e.DestinationTopic == "" {
		return "", nil, bus.Permanent(fmt.Errorf("forwarder envelope: %w: destination_topic is missing", bus.ErrUndecodable))
	}
	w := ToWatermill(&bus.Message{ID: e.UUID, Payload: e.Payload})
	w.Metadata = e.Metadata
	return e.DestinationTopic, FromWatermill(w), nil
}

// Forward is a handler that does the work of Watermill's forwarder: it unwraps the messages of the
// forwarder's topic, and publishes them through to, which may be another bus. A repeat publishes
// again, with the same id.
func Forward(to bus.Publisher) bus.Handler {
	return bus.HandlerFunc(func(ctx context.Context, wrapped *bus.Message) error {
		topic, m, err := Unwrap(wrapped)
		if err != nil {
			return err
		}
		return to.PublishMessages(ctx, topic, m)
	})
}
