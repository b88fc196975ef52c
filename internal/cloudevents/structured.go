package cloudevents

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/millrace-go/millrace/bus"
)

// structuredType is the content type of an event with its attributes in the payload.
const structuredType = "application/cloudevents+json"

// required are the attributes that each event has, in the order in which they are looked for.
var required = []string{"id", "source", "specversion", "type"}

// Unwrap replaces a message in structured mode by the message it holds, in place; it leaves any
// other message alone. The key stays, and headers beside the envelope stay behind the event's. An
// attribute that is null is absent. Unwrap fails if a required attribute is missing. On an error m is
// unchanged.
func Unwrap(m *bus.Message) error {
	if !isStructured(m.ContentType) {
		return nil
	}
	e, err := unwrapped(m)
	if err != nil {
		return fmt.Errorf("cloudevents: structured mode: %w", err)
	}
	*m = e
	return nil
}

// isStructured compares a media type, without its parameters and without regard to case.
func isStructured(contentType string) bool {
	if len(contentType) < len(structuredType) { // nearly all messages
		return false
	}
	media, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(media), structuredType)
}

// unwrapped returns the event that a message in structured mode holds.
func unwrapped(m *bus.Message) (bus.Message, error) {
	e := bus.Message{Key: m.Key, Time: m.Time, ContentType: bus.JSON.ContentType()}
	var attributes map[string]json.RawMessage
	if err := json.Unmarshal(m.Payload, &attributes); err != nil {
		return e, err
	}
	maps.DeleteFunc(attributes, func(name string, value json.RawMessage) bool { return string(value) == "null" })
	if err := checkRequired(attributes); err != nil {
		return e, err
	}
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		raw := attributes[name]
		if name == "data" || name == "data_base64" {
			continue
		}
		value := string(raw)
		if raw[0] == '"' {
			if err := json.Unmarshal(raw, &value); err != nil {
				return e, fmt.Errorf("attribute %q: %w", name, err)
			}
		}
		Set(&e, name, value)
	}
	if err := setData(&e, attributes); err != nil {
		return e, err
	}
	e.Headers = append(e.Headers, m.Headers...)
	return e, nil
}

// checkRequired reports a required attribute that is missing, or no text, and a version that is not
// known.
func checkRequired(attributes map[string]json.RawMessage) error {
	for _, name := range required {
		raw, ok := attributes[name]
		if !ok {
			return fmt.Errorf("the attribute %s is missing", name)
		}
		var value string
		if err := json.Unmarshal(raw, &value); err != nil || value == "" {
			return fmt.Errorf("the attribute %s is %.40s: want a text that is not empty", name, raw)
		}
		if name == "specversion" && value != "1.0" {
			return fmt.Errorf("the attribute specversion is %.40q: want 1.0", value)
		}
	}
	return nil
}

func setData(e *bus.Message, attributes map[string]json.RawMessage) error {
	if b64, ok := attributes["data_base64"]; ok {
		if _, both := attributes["data"]; both {
			return errors.New("it has both data and data_base64")
		}
		if err := json.Unmarshal(b64, &e.Payload); err != nil {
			return fmt.Errorf("data_base64: %w", err)
		}
		return nil
	}
	data, ok := attributes["data"]
	if !ok {
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
