package amqplink

import (
	"context"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Publish sends n parcels, which fill makes one by one, and waits for the broker's confirms. The
// result is nil if all are stored. Otherwise it is index-aligned: each parcel that is not stored
// has a *[RefusedError] or the error of fill.
//
// Once a parcel's fate is unknown, nothing further is sent: later messages must not overtake a
// message that is published again.
func (p *Pipeline) Publish(ctx context.Context, n int, fill func(i int, x *Parcel) error) []error {
	c := call{pipeline: p, ctx: ctx, n: n, sent: make([]pending, 0, n)}
	for i := range n {
		c.send(i, fill)
	}
	for c.waited < len(c.sent) && ctx.Err() == nil {
		c.await()
	}
	c.abandon()
	return c.errs
}

// call is the state of one Publish.
type call struct {
	pipeline *Pipeline
	ctx      context.Context
	n        int       // parcels of the call
	sent     []pending // in their order
	waited   int       // of how many of sent the fate was asked for
	stopped  bool      // nothing further is sent
	errs     []error   // by the parcels' places in the call; nil until one fails
}

// pending is a parcel that was sent.
type pending struct {
	place   int // in the call
	confirm *amqp.DeferredConfirmation
	size    int
	route   route
}

func (c *call) failed(place int, err error) {
	if c.errs == nil {
		c.errs = make([]error, c.n)
	}
	c.errs[place] = err
}

// send sends the parcel at a place of the call, unless an earlier one has stopped the call.
func (c *call) send(place int, fill func(i int, x *Parcel) error) {
	if c.stopped {
		c.failed(place, &RefusedError{Err: ErrNotSent, Definite: true})
		return
	}
	var x Parcel
	if err := fill(place, &x); err != nil {
		c.failed(place, err)
		return
	}
	defer Recycle(x.Headers)
	size := x.size()
	if !c.takeRoom(size) {
		c.stopped = true
		c.failed(place, c.pipeline.notSent(c.ctx))
		return
	}
	confirm, err := c.pipeline.ch.PublishWithDeferredConfirm(x.Exchange, x.Key, true, false, x.Publishing)
	if err != nil { // the channel had ended before
		c.stopped = true
		c.pipeline.budget.Give(size)
		c.failed(place, &RefusedError{Err: err, Definite: true})
		return
	}
	c.sent = append(c.sent, pending{place, confirm, size, route{x.Exchange, x.Key, x.MessageId}})
}

// takeRoom takes the room for a parcel. It waits for the confirms of this call first: a caller that
// waits for room must not itself take the room. It returns false if there is no room in time, or if
// one of the confirms has stopped the call.
func (c *call) takeRoom(size int) bool {
	p := c.pipeline
	for !p.budget.TryTake(size) {
		if c.waited == len(c.sent) {
			return p.budget.Take(c.ctx, p.closed, size)
		}
		if c.await(); c.stopped {
			return false
		}
	}
	return true
}

// await waits for the next confirm.
func (c *call) await() {
	x := &c.sent[c.waited]
	c.waited++
	if r := c.pipeline.wait(c.ctx, x); r != nil {
		c.failed(x.place, r)
		c.stopped = c.stopped || !r.Definite
	}
}

// abandon ends a call whose context has ended. It takes the outcomes that are there already, and
// leaves the rest to a goroutine: there is room for others when their confirms have come, not
// before.
func (c *call) abandon() {
	var rest []pending
	for _, x := range c.sent[c.waited:] {
		if isDone(x.confirm) {
			if r := c.pipeline.outcome(&x); r != nil {
				c.failed(x.place, r)
			}
			continue
		}
		rest = append(rest, x)
		c.failed(x.place, unconfirmed(c.ctx))
	}
	if len(rest) > 0 {
		go c.pipeline.release(rest)
	}
}

func isDone(confirm *amqp.DeferredConfirmation) bool {
	select {
	case <-confirm.Done():
		return true
	default:
		return false
	}
}
