package parking

import (
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Clock gives out the positions of one lane. They are times in nanoseconds, so that no position is
// given out twice, whoever owned the lane before. The zero value is ready.
type Clock struct{ last int64 }

// Next returns a position behind all others.
func (c *Clock) Next() int64 {
	c.last = max(c.last+1, time.Now().UnixNano())
	return c.last
}

// Seen notes a position that an earlier owner has given out.
func (c *Clock) Seen(position int64) { c.last = max(c.last, position) }

// Token names the message that is parked at a position.
func Token(lane bus.Lane, position int64) bus.Token {
	return bus.Token{Lane: lane.ID, Epoch: lane.Epoch, Position: position, Parked: true}
}

// Withdrawn tells a router that the message at a position is parked no more.
func Withdrawn(lane bus.Lane, position int64) driver.Parked {
	return driver.Parked{Token: Token(lane, position), Withdrawn: true}
}
