package rabbitmq

import (
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// minLimit is the smallest delivery limit of a lane's queues under which nothing is lost as long as owners of the lane do not die again and
// again before they have read what it holds: see maxReturns and maxLaneReturns.
const minLimit = 12

// probing is what an owner knows of the delivery limit of its parking queue. The broker does not tell a queue's arguments, nor what a
// policy says of it. So the owner has the queue deliver a record again and again: the queue drops it at its limit.
type probing struct {
	sent  time.Time // the probe was sent, or given back
	count int64     // so often
	fence bool      // a second one was sent, which comes behind the first
}

func (p *parking) probeName(fence bool) string { return fmt.Sprintf("%s/probe-%t", p.id, fence) }

// probe sends the probe, once in the life of a source.
func (p *parking) probe() {
	if err := p.of.limited.Load(); err != nil {
		p.source.failing(*err)
	}
	p.mu.Lock()
	known := p.of.probed.Swap(true)
	if !known {
		p.probing.sent = time.Now()
	}
	p.mu.Unlock()
	if known {
		return
	}
	if err := p.mark(p.ctx, parkProbe, p.probeName(false)); err != nil {
		p.endProbing(false)
	}
}

// endProbing ends it; without an answer the next owner asks again.
func (p *parking) endProbing(answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probing = probing{}
	p.of.probed.Store(answered)
}

// probed takes a probe.
func (p *parking) probed(d *amqp.Delivery) {
	p.mu.Lock()
	p.open++
	count, again := returns(d), d.MessageId == p.probeName(false) && !p.probing.sent.IsZero()
	if again = again && count < minLimit && (!d.Redelivered || count > 0); again { // a classic queue has no limit, and counts nothing
		p.probing.sent, p.probing.count = time.Now(), count
		if !p.ended {
			_ = p.ch.Reject(d.DeliveryTag, true) // RabbitMQ 4.3 does not count what is nacked
			p.open--
		}
	} else {
		p.ackLocked(d.DeliveryTag)
	}
	count = p.probing.count
	p.mu.Unlock()
	switch d.MessageId {
	case p.probeName(false):
		if !again {
			p.endProbing(true)
		}
	case p.probeName(true): // the first was before it
		err := fmt.Errorf("%w: the broker drops what queue %q takes back more than %d times: "+
			"set the delivery limit of the group's queues to %d or more, by the policy or the argument that it comes from", bus.ErrUnsupported, p.queue, count, minLimit)
		p.of.limited.Store(&err)
		p.source.failing(err)
		p.endProbing(true)
	}
}

// checkProbe sends a second probe if the first does not come back.
func (p *parking) checkProbe(now time.Time) {
	p.mu.Lock()
	late := !p.probing.sent.IsZero() && !p.probing.fence && now.Sub(p.probing.sent) > p.bounds.probe
	if late {
		p.probing.fence = true
	}
	p.mu.Unlock()
	if late {
		p.workers.Go(func() {
			if p.mark(p.ctx, parkProbe, p.probeName(true)) != nil {
				p.endProbing(false)
			}
		})
	}
}
