package kafka

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// parkingTopic is where a group keeps what it has parked of a topic: compacted, with a partition for each of the topic's.
// The length tells group and topic apart, both of which may have dots.
func parkingTopic(group, topic string) string {
	const longest = 249
	name := fmt.Sprintf("millrace.parking.%d.%s.%s", len(group), group, topic)
	if len(name) > longest {
		name = fmt.Sprintf("millrace.parking.%x", sha256.Sum256([]byte(name)))
	}
	return name
}

// A record of a parking topic is a parked message, whose key is its position; or a command from outside, which the
// lane's owner carries out and deletes. Both have a header for what has to be known while the body stays where it is.
const (
	headerDue  = "millrace-due"  // microseconds since 1970, rounded up, 0 for any time; and " free" if its key does not wait
	headerPark = "millrace-park" // of commands: see below
	free       = " free"

	commandNew      = "new"       // park this
	commandReplace  = "replace "  // and a position: this takes the place of what is parked there
	commandWithdraw = "withdraw " // and a position
)

// parkedFacts are what a record says beside the message, as JSON.
type parkedFacts struct {
	Handler   string       `json:"handler,omitempty"`
	Attempt   int          `json:"attempt"`
	FirstSeen time.Time    `json:"firstseen"`
	Failure   *bus.Failure `json:"failure,omitempty"`
}

func positionKey(position int64) []byte { return strconv.AppendInt(nil, position, 10) }

// positionOf returns false for the key of a command.
func positionOf(key []byte) (int64, bool) {
	position, err := strconv.ParseInt(string(key), 10, 64)
	return position, err == nil
}

// encodeParked makes the record of a parked message, or of the command to park it.
func encodeParked(r *kgo.Record, topic, key string, partition int32, p *bus.Parking) (int, error) {
	size, err := encodeStored(r, topic, key, p.Message, parkedFacts{
		Handler: p.Handler, Attempt: p.Attempt, FirstSeen: p.FirstSeen, Failure: p.Failure,
	})
	r.Partition = partition
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerDue, Value: dueText(p.Due, p.Free)})
	return size, err
}

func dueText(due time.Time, isFree bool) []byte {
	micros := int64(0)
	if !due.IsZero() {
		micros = due.Add(time.Microsecond - 1).UnixMicro()
	}
	text := strconv.AppendInt(nil, micros, 10)
	if isFree {
		text = append(text, free...)
	}
	return text
}

// parkedOf is what a router has to know of a record at this position.
func parkedOf(r *kgo.Record, lane bus.Lane, position int64) bus.Parked {
	p := bus.Parked{Token: bus.Token{Lane: lane.ID, Epoch: lane.Epoch, Position: position, Parked: true}}
	for _, h := range r.Headers {
		switch h.Key {
		case headerKey:
			p.Key = string(h.Value)
		case headerDue:
			text, isFree := strings.CutSuffix(string(h.Value), free)
			p.Free = isFree
			if micros, _ := strconv.ParseInt(text, 10, 64); micros > 0 {
				p.Due = time.UnixMicro(micros)
			}
		}
	}
	return p
}

// decodeParked returns false for a record that is no parked message.
func decodeParked(r *kgo.Record, s *bus.Subscription, t bus.Token) (bus.Delivery, bool, error) {
	c := *r
	c.Headers = nil
	for _, h := range r.Headers {
		if h.Key != headerDue {
			c.Headers = append(c.Headers, h)
		}
	}
	var f parkedFacts
	m, err := decodeStored(&c, &f)
	if m == nil || err != nil {
		return bus.Delivery{}, false, err
	}
	return bus.Delivery{
		Message: m, Token: t, Topic: s.Topic, Group: s.Group,
		Handler: f.Handler, Attempt: f.Attempt, FirstSeen: f.FirstSeen, Failure: f.Failure,
	}, true, nil
}

// command is what a command says: park, replace or withdraw.
type command struct {
	kind     string
	position int64
}

// commandOf returns false for records that are none.
func commandOf(r *kgo.Record) (command, bool) {
	for _, h := range r.Headers {
		if h.Key != headerPark {
			continue
		}
		text := string(h.Value)
		for _, kind := range [...]string{commandReplace, commandWithdraw} {
			if rest, ok := strings.CutPrefix(text, kind); ok {
				position, err := strconv.ParseInt(rest, 10, 64)
				return command{kind, position}, err == nil
			}
		}
		return command{kind: text}, text == commandNew
	}
	return command{}, false
}

// moved is a command's record as the one of the parked message at this position.
func moved(r *kgo.Record, position int64) kgo.Record {
	m := kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: positionKey(position), Value: r.Value}
	for _, h := range r.Headers {
		if h.Key != headerPark {
			m.Headers = append(m.Headers, h)
		}
	}
	return m
}

// removal is the record that deletes the one with this key.
func removal(topic string, partition int32, key []byte) kgo.Record {
	return kgo.Record{Topic: topic, Partition: partition, Key: key}
}
