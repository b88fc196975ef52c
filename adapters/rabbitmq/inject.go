package rabbitmq

import (
	"context"
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

const (
	// commandBatch is how many commands are carried out together, and commandLinger how long is waited for more.
	commandBatch  = 256
	commandLinger = 2 * time.Millisecond
)

// Inject implements bus.Injector.
func (d *driver) Inject(ctx context.Context, topic, group string, ps []bus.Parking) error {
	err := checkNames(topic, group)
	if err == nil && !d.enter() {
		err = bus.ErrClosed
	}
	if err != nil {
		return fail("inject", topic, err)
	}
	defer d.calls.Done()
	name := groupName(topic, group)
	q, err := d.pub.open(ctx)
	if err != nil {
		return fail("inject", topic, err)
	}
	lanes, err := call(ctx, q.session, func(_ context.Context, t *topology) (int, error) { return t.existingLanes(name) })
	if err != nil {
		return fail("inject", topic, err)
	}
	commands := make([]*bus.Parking, 0, len(ps))
	for i := range ps {
		if !ps[i].Token.Parked || ps[i].Lane >= 0 && int(ps[i].Lane) < lanes { // else it is gone, with its lane
			commands = append(commands, &ps[i])
		}
	}
	if err := d.pub.send(ctx, len(commands), func(i int, x *parcel) error { return inject(commands[i], name, lanes, x) }); err != nil {
		return fail("inject", topic, err)
	}
	return nil
}

// inject makes the record of a command.
func inject(p *bus.Parking, group string, lanes int, x *parcel) (err error) {
	lane, kind := int(p.Lane), parkReplace
	switch {
	case p.Withdraw:
		kind = parkWithdraw
		x.Publishing = amqp.Publishing{Headers: amqp.Table{parkHeader: kind}, DeliveryMode: amqp.Persistent}
	case !p.Token.Parked:
		lane, kind = slot(p.Key)%lanes, parkNew
	}
	if !p.Withdraw {
		if x.Publishing, err = encodeParked(p, kind); err != nil {
			return err
		}
	}
	x.key = parkedName(group, lane)
	x.Headers[commandHeader] = bus.NewID()
	x.Headers[positionHeader] = p.Token.Position
	return nil
}

// obey carries out commands, and tells the router.
func (p *parking) obey(commands []amqp.Delivery) {
	if len(commands) == 0 {
		return
	}
	if told, err := p.carryOut(p.source.ctx, commands); err == nil { // else the lane has been lost, or soon will be
		p.tell(told)
	}
}

// carryOut does what commands say, as far as it still can be done, and returns what the router is to be told. It tries
// until ctx or the ownership ends: whoever is the owner then is given the commands again.
//
// A command is removed when what it changes is stored. After a crash in between, the next owner sees that it was
// carried out.
func (p *parking) carryOut(ctx context.Context, commands []amqp.Delivery) (told []bus.Parked, err error) {
	var records []amqp.Publishing
	var withdrawn []int64
	p.mu.Lock()
	for i := range commands {
		c := &commands[i]
		kind, position := text(c.Headers[parkHeader]), positionOf(c)
		if kind == parkNew {
			position = p.next()
		} else if p.entries[position] == nil {
			continue
		}
		if kind == parkWithdraw {
			withdrawn = append(withdrawn, position)
			told = append(told, bus.Parked{Token: bus.Token{Lane: p.lane.ID, Epoch: p.lane.Epoch, Position: position, Parked: true}, Withdrawn: true})
			continue
		}
		told = append(told, parkedOf(c, p.lane, position))
		r := republish(c)
		r.Headers[parkHeader], r.Headers[positionHeader], r.Headers[revisionHeader] = parkMessage, position, p.revise(position)
		records = append(records, r)
	}
	for _, position := range withdrawn {
		p.remove(position)
	}
	p.mu.Unlock()
	for n := 0; ; n++ {
		err = p.source.d.pub.send(ctx, len(records), func(i int, x *parcel) error {
			x.key, x.Publishing = p.queue, records[i]
			x.Headers = clone(x.Headers) // which the pipeline recycles
			return nil
		})
		if err == nil {
			break
		}
		select {
		case <-p.closed:
			return nil, errors.Join(errEnded, err)
		default:
		}
		if !pause(ctx, backoff(n)) {
			return nil, err
		}
	}
	for i := range commands {
		p.ack(commands[i].DeliveryTag)
	}
	return told, nil
}

func clone(t amqp.Table) amqp.Table {
	c := tables.Get().(amqp.Table)
	for name, value := range t {
		c[name] = value
	}
	return c
}
