package rabbitmq

import (
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus/driver"
)

// calmAfter is how long a lane has been registered when it is in no trouble any more.
const calmAfter = 250 * time.Millisecond

// spot is a place that may be in trouble: a lane, by its number, or one of these.
type spot int32

const (
	// connection is the connection that consumes.
	connection spot = -1 - iota
	// setup is the objects that the topic and the group need at the broker.
	setup
	// ownTraffic is the messages that the driver publishes for itself.
	ownTraffic
	// deliveryLimit is the delivery limit of the group's queues.
	deliveryLimit
	// kept is the queue of messages that came to the topic while it had no group to take them.
	kept
	// counting is the count of the group's members.
	counting
)

func (p spot) String() string {
	switch p {
	case connection:
		return driver.Disconnected
	case setup:
		return "the topic or the group cannot be set up"
	case ownTraffic:
		return "lanes cannot be woken"
	case deliveryLimit:
		return "parked messages may be lost"
	case kept:
		return "the messages that the topic kept cannot be moved to the group"
	case counting:
		return "the members cannot be counted, so each takes the lanes that it gets"
	default:
		return fmt.Sprintf("lane %d cannot be consumed", int32(p))
	}
}

// troubled tells the observer that something fails.
func (s *source) troubled(at spot, err error) {
	what := at.String()
	s.conditions.Report(what, what, fail("receive", s.sub.Topic, err))
}

// healed tells the observer that something works again.
func (s *source) healed(at spot) { s.conditions.Report(at.String(), "", nil) }
