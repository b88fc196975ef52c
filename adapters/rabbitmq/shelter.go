package rabbitmq

import (
	"context"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// maxLaneReturns is from how many returns on a message is not left in its lane's queue: see
// maxReturns. Owners give messages of a lane back often enough, and a copy would come behind later
// messages of its key.
const maxLaneReturns = 10

// shelter parks a message that its lane's queue would drop some time, without a delay. The
// message's key waits for it, and a parked message is never given back too often. shelter returns
// false if parking is not possible now; then the message is delivered as it is.
func (c *consumer) shelter(ctx context.Context, m *bus.Message, tag int64) bool {
	s, p := c.lane.source, c.parking
	if p == nil || s.d.pub.link.Blocked() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, p.bounds.marker)
	defer cancel()
	ps := []driver.Parking{{Delivery: bus.Delivery{
		Message: m, Token: bus.Token{Lane: c.lane.id, Epoch: c.own.lane.Epoch, Position: tag}, Topic: s.sub.Topic, Group: s.sub.Group,
	}}}
	if s.Park(ctx, ps) != nil {
		return false
	}
	p.tell([]driver.Parked{{Token: ps[0].Token, Key: m.Key}})
	return true
}
