package rabbitmq

import (
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	lot "github.com/millrace-go/millrace/internal/parking"
	"github.com/millrace-go/millrace/internal/stored"
)

// A lane's parking queue holds three sorts of records: parked messages; commands from outside,
// which the lane's owner carries out; markers and probes. By markers and probes an owner learns how
// far it has read and how the queue behaves.
const (
	parkHeader     = "millrace-park"     // the kind of record
	positionHeader = "millrace-position" // message, replace, withdraw: the place among the parked of the lane
	revisionHeader = "millrace-revision" // message: a higher one takes the place of a lower one with the same position
	copyHeader     = "millrace-copy"     // message: among the copies of one revision, the highest counts
	dueHeader      = "millrace-due"      // microseconds since 1970, rounded up, 0 for any time
	delayedHeader  = "millrace-free"     // its key does not wait for it
	commandHeader  = "millrace-command"  // commands, and messages that were parked by one: the command's name
)

// Kinds of records, beside the kinds of commands.
const (
	parkMessage = "message"
	parkMarker  = "marker"
	parkProbe   = "probe" // see probe
)

// isCommand says whether a record's kind is a command's.
func isCommand(kind string) bool {
	k := lot.Kind(kind)
	return k == lot.New || k == lot.Replace || k == lot.Withdraw
}

// encodeParked makes the record of a message that is parked or about to be, but for its position.
func encodeParked(p *driver.Parking, kind string) (amqp.Publishing, error) {
	pub, err := encodeStored(p.Message, stored.FactsOf(&p.Delivery))
	if err != nil {
		return pub, err
	}
	pub.Headers[parkHeader] = kind
	pub.Headers[dueHeader] = stored.Micros(p.Due)
	if p.Delayed {
		pub.Headers[delayedHeader] = true
	}
	return pub, nil
}

// parkedOf returns the facts that a router needs about a record at this position.
func parkedOf(d *amqp.Delivery, lane bus.Lane, position int64) driver.Parked {
	p := driver.Parked{Token: lot.Token(lane, position), Key: storedKey(d)}
	p.Delayed, _ = d.Headers[delayedHeader].(bool)
	p.Due = stored.Due(number(d, dueHeader))
	return p
}

// decodeParked fills in the stored values of a parked message. An unreadable message is given as it
// is.
func decodeParked(d *amqp.Delivery, into *bus.Delivery) {
	var f stored.Facts
	m, err := decodeStored(d, &f, parkHeader, positionHeader, revisionHeader, copyHeader, dueHeader, delayedHeader, commandHeader)
	if err != nil {
		id := d.MessageId
		if id == "" {
			id = fmt.Sprintf("parked-%d", into.Position)
		}
		m, f.Failure = unreadable(d, id, err)
	}
	into.Message = m
	f.Fill(into)
}

// number reads a header of ours; it is 0 if there is none.
func number(d *amqp.Delivery, header string) int64 {
	n, _ := d.Headers[header].(int64)
	return n
}

// returns is how often the queue has taken d back, as far as it counts this against its delivery
// limit.
func returns(d *amqp.Delivery) int64 {
	if !d.Redelivered {
		return 0 // the header would be the publisher's
	}
	return number(d, "x-delivery-count")
}
