package kafka

import (
	"encoding/json"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// Stored messages are records of compacted topics: of the poison queue, and of what is parked. The record's key is the
// entry's own, so that a later record replaces it, and one without a value removes it.
//
// The headers that such a record has beside those of the message: what is to be known of it, as JSON, and the message's key.
const (
	headerFacts = "millrace-facts"
	headerKey   = "millrace-key"
)

// headerTombstone marks a message without a payload. A record without a value would remove the entry.
const headerTombstone = "millrace-tombstone"

// storeRoom is how much larger than a message its record may be: a panic's stack takes most of it.
const storeRoom = 256 << 10

// encodeStored makes the record of a stored message. It returns its size in bytes.
func encodeStored(r *kgo.Record, topic, key string, m *bus.Message, facts any) (int, error) {
	about, err := json.Marshal(facts)
	if err != nil {
		return 0, err
	}
	records, size := encode(topic, []*bus.Message{m})
	*r = records[0]
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerFacts, Value: about}, kgo.RecordHeader{Key: headerKey, Value: r.Key})
	if r.Value == nil {
		r.Value = []byte{}
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerTombstone})
	}
	r.Key = []byte(key)
	return size + len(about) + len(key), nil
}

// decodeStored returns the message of a record, and fills facts. It returns nil for records that are no stored messages.
func decodeStored(r *kgo.Record, facts any) (*bus.Message, error) {
	c := *r
	c.Headers = nil
	found := false
	for _, h := range r.Headers {
		switch h.Key {
		case headerFacts:
			if err := json.Unmarshal(h.Value, facts); err != nil {
				return nil, fmt.Errorf("record %q: %w", r.Key, err)
			}
			found = true
		case headerKey:
			c.Key = h.Value
		case headerTombstone:
			c.Value = nil
		default:
			c.Headers = append(c.Headers, h)
		}
	}
	if !found {
		return nil, nil
	}
	d := decoder{}
	d.reserve([]accepted{{record: &c}})
	return d.message(&c), nil
}

// compacted are the configs of a topic with stored messages. Its segments are small, because what is in the newest one is
// not compacted, and it is read to its end.
func (t *topics) compacted() map[string]*string {
	configs := t.sized(storeRoom)
	policy, segment := "compact", "33554432"
	configs["cleanup.policy"], configs["segment.bytes"] = &policy, &segment
	return configs
}
