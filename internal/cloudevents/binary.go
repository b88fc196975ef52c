// Package cloudevents maps messages to CloudEvents 1.0 and back, for all drivers. In binary mode it
// maps attribute by attribute, and each driver writes them in its protocol's form. It also reads
// structured-mode JSON.
package cloudevents

import (
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Each calls yield with each attribute set in m: id, source, specversion, type, subject, time,
// without any prefix. It leaves out the content type: protocols have a place of their own for it.
func Each(m *bus.Message, yield func(name, value string)) {
	yield("specversion", "1.0")
	yield("id", m.ID)
	yield("source", m.Source)
	if m.Type != "" {
		yield("type", m.Type)
	}
	if m.Subject != "" {
		yield("subject", m.Subject)
	}
	yield("time", m.Time.UTC().Format(time.RFC3339Nano))
}

// IsExtension reports whether a header travels as a CloudEvents extension attribute, and so with
// the prefix.
func IsExtension(header string) bool {
	return header == bus.HeaderCorrelationID || header == bus.HeaderCausationID || header == bus.HeaderDeliverAt || header == bus.HeaderCancels
}

// Names puts a protocol's prefix before the names of attributes. It builds the usual names only
// once.
type Names struct {
	prefix string
	known  map[string]string
}

// NewNames makes Names of a prefix.
func NewNames(prefix string) Names {
	n := Names{prefix, map[string]string{}}
	for _, attribute := range []string{
		"specversion", "id", "source", "type", "subject", "time", bus.HeaderCorrelationID, bus.HeaderCausationID, bus.HeaderDeliverAt,
	} {
		n.known[attribute] = prefix + attribute
	}
	return n
}

// Of returns an attribute's name with the prefix.
func (n Names) Of(attribute string) string {
	if name, ok := n.known[attribute]; ok {
		return name
	}
	return n.prefix + attribute
}

// Attribute returns a header's attribute name in lower case if the header begins with a prefix of
// the protocols' bindings (ce_, ce-, cloudEvents_, cloudEvents:).
func Attribute(header string) (string, bool) {
	if len(header) > 3 && (header[:3] == "ce_" || header[:3] == "ce-") {
		return strings.ToLower(header[3:]), true
	}
	const long = len("cloudEvents_")
	if len(header) > long && (header[:long] == "cloudEvents_" || header[:long] == "cloudEvents:") {
		return strings.ToLower(header[long:]), true
	}
	return "", false
}

// Set puts an attribute into m: into its field, or among the headers if it is an extension.
func Set(m *bus.Message, name, value string) {
	switch name {
	case "specversion": // there is only one
	case "id":
		m.ID = value
	case "source":
		m.Source = value
	case "type":
		m.Type = value
	case "subject":
		m.Subject = value
	case "datacontenttype":
		m.ContentType = value
	case "time":
		t, err := time.Parse(time.RFC3339Nano, value)
		if err != nil { // a foreign producer's mistake is no reason to lose the value
			m.Headers.Add(name, value)
			return
		}
		m.Time = t
	default:
		m.Headers.Add(name, value)
	}
}
