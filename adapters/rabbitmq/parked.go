package rabbitmq

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// Records in a lane's parking queue are parked messages; commands from outside, which the lane's owner carries out; and
// markers, by which an owner learns that it has read what was there before.
const (
	parkHeader     = "millrace-park"     // the kind of record
	positionHeader = "millrace-position" // message, replace, withdraw: the place among the parked of the lane
	revisionHeader = "millrace-revision" // message: a higher one takes the place of a lower one with the same position
	dueHeader      = "millrace-due"      // microseconds since 1970, rounded up, 0 for any time
	freeHeader     = "millrace-free"     // its key does not wait for it
	commandHeader  = "millrace-command"  // commands, and messages that were parked by one: the command's name
)

const (
	parkMessage  = "message"
	parkNew      = "new"      // command: park this
	parkReplace  = "replace"  // command: this takes the place of what is parked there
	parkWithdraw = "withdraw" // command
	parkMarker   = "marker"
)

// parkedFacts is what is known of a parked message when it is fetched.
type parkedFacts struct {
	Handler   string       `json:"handler,omitempty"`
	Attempt   int          `json:"attempt"`
	FirstSeen time.Time    `json:"firstseen"`
	Failure   *bus.Failure `json:"failure,omitempty"`
}

// encodeParked makes the record of a message that is parked, or is to be parked, but for its position.
func encodeParked(p *bus.Parking, kind string) (amqp.Publishing, error) {
	pub, err := encodeStored(p.Message, parkedFacts{
		Handler: p.Handler, Attempt: p.Attempt, FirstSeen: p.FirstSeen, Failure: p.Failure,
	})
	if err != nil {
		return pub, err
	}
	due := int64(0)
	if !p.Due.IsZero() {
		due = p.Due.Add(time.Microsecond - 1).UnixMicro()
	}
	pub.Headers[parkHeader] = kind
	pub.Headers[dueHeader] = due
	if p.Free {
		pub.Headers[freeHeader] = true
	}
	return pub, nil
}

// parkedOf is what a router has to know of a record at this position.
func parkedOf(d *amqp.Delivery, lane bus.Lane, position int64) bus.Parked {
	p := bus.Parked{Token: bus.Token{Lane: lane.ID, Epoch: lane.Epoch, Position: position, Parked: true}}
	p.Key, _ = d.Headers[keyHeader].(string)
	p.Free, _ = d.Headers[freeHeader].(bool)
	if due, _ := d.Headers[dueHeader].(int64); due > 0 {
		p.Due = time.UnixMicro(due)
	}
	return p
}

// decodeParked fills in what is stored of a parked message.
func decodeParked(d *amqp.Delivery, into *bus.Delivery) error {
	var f parkedFacts
	m, err := decodeStored(d, &f, parkHeader, positionHeader, revisionHeader, dueHeader, freeHeader, commandHeader)
	if err != nil {
		return err
	}
	into.Message, into.Handler, into.Attempt, into.FirstSeen, into.Failure = m, f.Handler, f.Attempt, f.FirstSeen, f.Failure
	return nil
}

func positionOf(d *amqp.Delivery) int64 {
	position, _ := d.Headers[positionHeader].(int64)
	return position
}
