package rabbitmq

import (
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// minLimit is the smallest delivery limit of a lane's queues under which nothing is lost. The
// condition is that owners of the lane do not die again and again before they have read its
// messages: see maxReturns and maxLaneReturns.
const minLimit = 12

// probing is an owner's knowledge of the delivery limit of its parking queue. The broker tells
// neither a queue's arguments, nor a policy's settings for it. So the owner has the queue deliver a
// record again and again: the queue drops it at its limit.
type probing struct {
	sent   time.Time // the probe was sent, or given back
	times  int64     // it came
	fenced bool      // a fence was sent: it comes behind the probe, unless that is gone
}

func (p *parking) probeName() string { return p.id + "/probe" }

// fenceName is void as soon as the probe comes once more: then it is behind the fence.
func (p *parking) fenceName(times int64) string { return fmt.Sprintf("%s/fence-%d", p.id, times) }

// probe sends the probe, once in the life of a source.
func (p *parking) probe() {
	if err := p.of.limited.Load(); err != nil {
		p.source.troubled(deliveryLimit, *err)
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
	if err := p.mark(p.ctx, parkProbe, p.probeName()); err != nil {
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

// probed takes a probe or a fence.
func (p *parking) probed(d *amqp.Delivery) {
	p.mu.Lock()
	p.open++
	x := &p.probing
	probe := !x.sent.IsZero() && d.MessageId == p.probeName()
	dropped := x.fenced && d.MessageId == p.fenceName(x.times)
	again := probe && returns(d) < minLimit && (!d.Redelivered || returns(d) > 0) // a classic queue has no limit, and counts nothing
	if again {
		x.sent, x.fenced = time.Now(), false
		x.times++
		if !p.ended {
			_ = p.ch.Reject(d.DeliveryTag, true) // as in giveBackLocked; RabbitMQ 4.3 does not count nacks
			p.open--
		}
	} else {
		p.ackLocked(d.DeliveryTag)
	}
	limit := x.times - 1
	p.mu.Unlock()
	if dropped {
		err := fmt.Errorf("%w: the broker drops a message that returns to queue %q more than %d times: "+
			"set the delivery limit of the group's queues to %d or more, by the policy or the argument that it comes from", bus.ErrUnsupported, p.queue, limit, minLimit)
		p.of.limited.Store(&err)
		p.source.troubled(deliveryLimit, err)
	}
	if dropped || probe && !again {
		p.endProbing(true)
	}
}

// checkProbe sends a fence if the probe does not come back.
func (p *parking) checkProbe(now time.Time) {
	p.mu.Lock()
	x := &p.probing
	late := !x.sent.IsZero() && !x.fenced && x.times > 0 && now.Sub(x.sent) > p.bounds.probe
	if late {
		x.fenced = true
	}
	name := p.fenceName(x.times)
	p.mu.Unlock()
	if late {
		p.workers.Go(func() {
			if p.mark(p.ctx, parkProbe, name) != nil {
				p.endProbing(false)
			}
		})
	}
}
