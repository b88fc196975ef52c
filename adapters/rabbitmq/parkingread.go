package rabbitmq

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus/driver"
)

// start begins to read on, and to carry out commands. The router knows the lane and its parked
// messages by now.
func (p *parking) start() {
	p.workers.Go(p.read)
	p.workers.Go(p.write)
}

// read follows the deliveries until the channel ends.
func (p *parking) read() {
	tick := time.NewTicker(p.bounds.tick)
	defer tick.Stop()
	silent := false
	for {
		select {
		case d, ok := <-p.deliveries:
			if !ok {
				p.end()
				_ = p.ch.Close() // the queue may be gone, and the channel not
				return
			}
			silent = false
			p.arrive(&d)
		case now := <-tick.C:
			p.refresh(now)
			if silent && p.rotate(false) == 0 {
				p.lookBehind()
			}
			silent = true
			p.checkProbe(now)
		}
	}
}

// arrive takes a record that came after the first reading.
func (p *parking) arrive(d *amqp.Delivery) {
	switch kind := text(d.Headers[parkHeader]); {
	case kind == parkMessage && number(d, positionHeader) > 0:
		if counts, known := p.take(d); counts && !known {
			p.tell([]driver.Parked{parkedOf(d, p.lane, number(d, positionHeader))})
		}
	case isCommand(kind):
		p.mu.Lock()
		p.open++
		p.commands = append(p.commands, *d)
		p.mu.Unlock()
		p.wake()
	case kind == parkProbe:
		p.probed(d)
	default:
		p.hold(d)
	}
}

func (p *parking) tell(told []driver.Parked) {
	if o, ok := p.source.observer.(driver.ParkingObserver); ok && len(told) > 0 {
		p.telling.Lock()
		defer p.telling.Unlock()
		o.Parked(told)
	}
}

// hold notes a record that stays unsettled though nothing is known about it. It may be the marker
// of a member that waits to be the owner and gets it when this channel is closed. Or it is a record
// that somebody else has put here.
func (p *parking) hold(d *amqp.Delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open++
	if p.ownMarker(d) {
		p.ackLocked(d.DeliveryTag)
		return
	}
	marker := text(d.Headers[parkHeader]) == parkMarker
	copying := returns(d) >= maxReturns && !marker && p.copyRecord(d, 0)
	p.strangers[d.DeliveryTag] = stranger{time.Now(), marker, copying}
}

// ownMarker says whether d is a marker that this owner has sent, beyond the one that it waited for.
func (p *parking) ownMarker(d *amqp.Delivery) bool {
	return text(d.Headers[parkHeader]) == parkMarker && len(d.MessageId) > len(p.id) && d.MessageId[:len(p.id)+1] == p.id+"/"
}
