package cloudevents

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-go/millrace/bus"
)

// structuredType is the content type of an event with its attributes in the payload.
const structuredType = "application/cloudevents+json"

// Unwrap replaces a message in structured mode by the message it holds, in place; it leaves any
// other message alone. The key stays, and headers beside the envelope stay behind the event's. On
// an error m is unchanged.
func Unwrap(m *bus.Message) error {
	if !strings.HasPrefix(m.ContentType, structuredType) {
		return nil
	}
	var attributes map[string]json.RawMessage
	if err := json.Unmarshal(m.Payload, &attributes); err != nil {
		return fmt.Errorf("cloudevents: structured mode: %w", err)
	}
	if _, ok := attributes["id"]; !ok {
		return errors.New("cloudevents: structured mode: the attribute id is missing")
	}
	e := bus.Message{Key: m.Key, Time: m.Time, ContentType: bus.JSON.ContentType()}
	names := make([]string, 0, len(attributes))
	for name := range attributes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		raw := attributes[name]
		switch name {
		case "data", "data_base64":
			continue
		}
		value := string(raw)
		if raw[0] == '"' {
			if err := json.Unmarshal(raw, &value); err != nil {
				return fmt.Errorf("cloudevents: structured mode: attribute %q: %w", name, err)
			}
		}
		Set(&e, name, value)
	}
	if err := setData(&e, attributes); err != nil {
		return err
	}
	e.Headers = append(e.Headers, m.Headers...)
	*m = e
	return nil
}

func setData(e *bus.Message, attributes map[string]json.RawMessage) error {
	if b64, ok := attributes["data_base64"]; ok {
		if err := json.Unmarshal(b64, &e.Payload); err != nil {
			return fmt.Errorf("cloudevents: structured mode: data_base64: %w", err)
		}
		return nil
	}
	data, ok := attributes["data"]
	if !ok || string(data) == "null" {
		return nil
	}
	// With a type other than JSON, data is the text itself, as a JSON string.
	media := strings.ToLower(e.ContentType)
	if text := ""; !strings.Contains(media, "json") && json.Unmarshal(data, &text) == nil {
		e.Payload = []byte(text)
		return nil
	}
	e.Payload = data
	return nil
}
