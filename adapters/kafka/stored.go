package kafka

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Stored messages are records of compacted topics: of the poison queue and of the parking topics.
// The record's key is the entry's own, so that a later record replaces it, and one without a value
// removes it.
//
// A stored record has these headers behind the message's own: facts about the record, as JSON, and
// the message's key. A message of another program may have headers of these names, too. The last
// facts are ours, and the headers before them are the message's.
const (
	headerFacts = "millrace-facts"
	headerKey   = "millrace-key"
)

// headerTombstone marks a message without a payload. A record without a value would remove the
// entry.
const headerTombstone = "millrace-tombstone"

// storeRoom is how much larger than a message its record may be: a panic's stack takes most of it.
const storeRoom = 256 << 10

// encodeStored makes the record of a stored message.
func encodeStored(r *kgo.Record, topic, key string, m *bus.Message, facts any) error {
	about, err := json.Marshal(facts)
	if err != nil {
		return fmt.Errorf("%w: %w", bus.ErrInvalid, err)
	}
	records, _ := encode(topic, []*bus.Message{m})
	*r = records[0]
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerFacts, Value: about}, kgo.RecordHeader{Key: headerKey, Value: r.Key})
	if r.Value == nil {
		r.Value = []byte{}
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerTombstone})
	}
	r.Key = []byte(key)
	return nil
}

// split divides the headers of a stored message's record into the message's and ours. ok is false
// if there are none of ours.
func split(headers []kgo.RecordHeader) (message, ours []kgo.RecordHeader, ok bool) {
	for i := len(headers) - 1; i >= 0; i-- {
		if headers[i].Key == headerFacts {
			return headers[:i], headers[i:], true
		}
	}
	return headers, nil, false
}

// errForeign is the error of a record that no driver of this kind has written.
var errForeign = errors.New("the record has no facts about a message: another program wrote it")

// decodeStored returns the message of a record, and fills facts. An error says why the record is
// unreadable.
func decodeStored(r *kgo.Record, facts any) (*bus.Message, error) {
	message, ours, ok := split(r.Headers)
	if !ok {
		return nil, errForeign
	}
	c := *r
	c.Headers = message
	for _, h := range ours {
		switch h.Key {
		case headerFacts:
			if err := json.Unmarshal(h.Value, facts); err != nil {
				return nil, fmt.Errorf("the record's facts are damaged: %w", err)
			}
		case headerKey:
			c.Key = h.Value
		case headerTombstone:
			c.Value = nil
		}
	}
	return decodeOne(&c), nil
}

func decodeOne(r *kgo.Record) *bus.Message {
	d := decoder{}
	d.reserve([]accepted{{record: r}})
	return d.message(r)
}

// unreadable is the entry of a record that cannot be read: its own bytes, and why.
func unreadable(r *kgo.Record, why error) driver.PoisonEntry {
	return driver.PoisonEntry{
		Message: decodeOne(r), Lane: r.Partition, Position: r.Offset, Time: r.Timestamp,
		Failure: bus.Failure{
			Class: driver.Unreadable, First: r.Timestamp, Last: r.Timestamp,
			Text: fmt.Sprintf("record %d of partition %d of topic %q cannot be read: %v", r.Offset, r.Partition, r.Topic, why),
		},
	}
}

// compacted are the configs of a topic with stored messages, which takes records of this size. Its
// segments are small, because the newest one is not compacted, and is read to its end.
func compacted(size int) map[string]*string {
	const segment = 32 << 20
	limit, bytes, policy := strconv.Itoa(size), strconv.Itoa(max(segment, size)), "compact"
	return map[string]*string{"max.message.bytes": &limit, "cleanup.policy": &policy, "segment.bytes": &bytes}
}
