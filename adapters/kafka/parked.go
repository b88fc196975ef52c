package kafka

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/parking"
	"github.com/millrace-go/millrace/internal/stored"
)

// parkingTopic names the compacted topic in which a group keeps a topic's parked messages. It has a
// partition for each of the topic's. The length tells group and topic apart: both may have dots.
func parkingTopic(group, topic string) string {
	const longest = 249
	name := fmt.Sprintf("millrace.parking.%d.%s.%s", len(group), group, topic)
	if len(name) > longest {
		name = fmt.Sprintf("millrace.parking.%x", sha256.Sum256([]byte(name)))
	}
	return name
}

// A record of a parking topic is a parked message, with its position as the key. Or it is a command
// from outside, which the lane's owner carries out and deletes. Headers hold the facts that the
// owner needs while the body stays in the log.
const (
	headerDue  = "millrace-due"  // microseconds since 1970, rounded up, 0 for any time; and " free" if its key does not wait
	headerPark = "millrace-park" // of commands: a parking.Command
	headerWho  = "millrace-id"   // of a command to withdraw: the message's id
	free       = " free"
)

// parkedFacts are a record's facts beside the message, as JSON.
type parkedFacts struct {
	stored.Facts
	Writer  string `json:"writer,omitempty"`  // the ownership that wrote the record
	Command string `json:"command,omitempty"` // the key of the command that it carries out
}

func positionKey(position int64) []byte { return strconv.AppendInt(nil, position, 10) }

// positionOf returns false for the key of a command.
func positionOf(key []byte) (int64, bool) {
	position, err := strconv.ParseInt(string(key), 10, 64)
	return position, err == nil
}

// encodeParked makes the record of a parked message, or of the command to park it, which has no
// writer.
func encodeParked(r *kgo.Record, topic, key string, partition int32, p *driver.Parking, writer string) error {
	err := encodeStored(r, topic, key, p.Message, parkedFacts{Facts: stored.FactsOf(&p.Delivery), Writer: writer})
	r.Partition = partition
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerDue, Value: dueText(p.Due, p.Delayed)})
	return err
}

func dueText(due time.Time, isFree bool) []byte {
	text := strconv.AppendInt(nil, stored.Micros(due), 10)
	if isFree {
		text = append(text, free...)
	}
	return text
}

// parkedOf returns the facts that a router needs of a record at this position. A record that cannot
// be read is due at once.
func parkedOf(r *kgo.Record, lane bus.Lane, position int64) driver.Parked {
	p := driver.Parked{Token: parking.Token(lane, position)}
	_, ours, _ := split(r.Headers)
	for _, h := range ours {
		switch h.Key {
		case headerKey:
			p.Key = string(h.Value)
		case headerDue:
			text, isFree := strings.CutSuffix(string(h.Value), free)
			p.Delayed = isFree
			micros, _ := strconv.ParseInt(text, 10, 64)
			p.Due = stored.Due(micros)
		}
	}
	return p
}

// decodeParked returns an error for a record that cannot be read.
func decodeParked(r *kgo.Record, s *bus.Subscription, t bus.Token) (bus.Delivery, error) {
	var f parkedFacts
	m, err := decodeStored(r, &f)
	if err != nil {
		return bus.Delivery{}, err
	}
	d := bus.Delivery{Message: m, Token: t, Topic: s.Topic, Group: s.Group}
	f.Fill(&d)
	return d, nil
}

// factsOf are a parked record's facts; none if it cannot be read.
func factsOf(r *kgo.Record) (f parkedFacts) {
	if _, ours, ok := split(r.Headers); ok {
		_ = json.Unmarshal(ours[0].Value, &f) // Fetch reports it
	}
	return f
}

// mayCarryOut says, quickly, whether a parked record may name a command.
func mayCarryOut(r *kgo.Record) bool {
	_, ours, ok := split(r.Headers)
	return ok && bytes.Contains(ours[0].Value, []byte(`"command":`))
}

// command is the content of a command's record.
type command struct {
	parking.Command
	id string // of the message that is meant; "": any, by an earlier version
}

// commandOf returns false for records that are none, or of a kind that a later version has.
func commandOf(r *kgo.Record) (command, bool) {
	_, ours, isMessage := split(r.Headers)
	if !isMessage {
		ours = r.Headers
	}
	c, ok := command{}, false
	for _, h := range ours {
		switch h.Key {
		case headerWho:
			c.id = string(h.Value)
		case headerPark:
			c.Command, ok = parking.ParseCommand(string(h.Value))
		}
	}
	if isMessage == (c.Kind == parking.Withdraw) {
		return c, false
	}
	if isMessage {
		c.id = idOf(r)
	}
	return c, ok
}

// idOf is the id of a stored message.
func idOf(r *kgo.Record) string {
	message, _, _ := split(r.Headers)
	c := *r
	c.Headers = message
	return decodeOne(&c).ID
}

// moved makes a command's record the record of the parked message at this position.
func moved(r *kgo.Record, position int64, writer string) (kgo.Record, error) {
	message, ours, _ := split(r.Headers)
	f := factsOf(r)
	f.Writer, f.Command = writer, string(r.Key)
	facts, err := json.Marshal(f)
	m := kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: positionKey(position), Value: r.Value, Headers: slices.Clone(message)}
	for _, h := range ours {
		switch h.Key {
		case headerPark:
			continue
		case headerFacts:
			h.Value = facts
		}
		m.Headers = append(m.Headers, h)
	}
	return m, err
}

// removal returns the record that deletes the record with this key.
func removal(topic string, partition int32, key []byte) kgo.Record {
	return kgo.Record{Topic: topic, Partition: partition, Key: key}
}
