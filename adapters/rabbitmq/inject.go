package rabbitmq

import (
	"context"
	"fmt"
	"hash/maphash"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	lot "github.com/millrace-go/millrace/internal/parking"
)

const (
	// commandBatch is how many commands are carried out together.
	commandBatch = 256
	// maxWaiting is the number of waiting records from which on a parking queue takes no commands.
	// More records than its owner is given at once slow down all messages that are parked.
	maxWaiting = maxParked + 10_000
)

// Inject implements driver.Injector.
func (d *busDriver) Inject(ctx context.Context, topic, group string, ps []driver.Parking) error {
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
	lanes, err := call(ctx, q.session, func(_ context.Context, t *topology) (int, error) { return d.existingLanes(t, name) })
	if err != nil {
		return fail("inject", topic, err)
	}
	commands := make([]*driver.Parking, 0, len(ps))
	queues := map[string]bool{}
	for i := range ps {
		if lane := laneFor(&ps[i], lanes); lane < lanes { // else it is gone, with its lane
			commands = append(commands, &ps[i])
			queues[parkedName(name, lane)] = true
		}
	}
	_, err = call(ctx, q.session, func(_ context.Context, t *topology) (struct{}, error) {
		return struct{}{}, t.haveRoom(queues, maxWaiting)
	})
	if err == nil {
		err = d.pub.send(ctx, len(commands), func(i int, x *amqplink.Parcel) error { return inject(commands[i], name, lanes, x) })
	}
	if err != nil {
		return fail("inject", topic, err)
	}
	return nil
}

// laneFor is the lane to which a command goes; it is lanes if there is none.
func laneFor(p *driver.Parking, lanes int) int {
	switch {
	case !p.Token.Parked:
		return slot(p.Key) % lanes
	case p.Lane < 0 || int(p.Lane) >= lanes:
		return lanes
	default:
		return int(p.Lane)
	}
}

// haveRoom says whether parking queues take commands: those in which fewer than most records wait.
func (t *topology) haveRoom(queues map[string]bool, most int) error {
	for name := range queues {
		q, _, err := t.queue(name)
		if err != nil {
			return err
		}
		if q.Messages >= most {
			return fmt.Errorf("%d records wait in queue %q: there is no room until some of them are handled", q.Messages, name)
		}
	}
	return nil
}

// inject makes the record of a command.
func inject(p *driver.Parking, group string, lanes int, x *amqplink.Parcel) (err error) {
	kind := string(lot.CommandOf(p).Kind)
	if p.Withdraw {
		x.Publishing = amqp.Publishing{Headers: amqp.Table{parkHeader: kind}, DeliveryMode: amqp.Persistent}
		if p.Message != nil {
			x.MessageId = storedID(p.Message)
		}
	} else if x.Publishing, err = encodeParked(p, kind); err != nil {
		return err
	}
	x.Key = parkedName(group, laneFor(p, lanes))
	x.Headers[commandHeader] = bus.NewID()
	x.Headers[positionHeader] = p.Token.Position
	return nil
}

// order is a command that is being carried out.
type order struct {
	command            *amqp.Delivery
	record             amqp.Publishing
	position, revision int64
}

// carryOut carries out the commands, as far as it still can, and tells the router. It retries
// results that cannot be stored now, under the same position and revision, until the ownership
// ends: the next owner is given the commands again. A command that can never be carried out stays
// in the queue.
//
// A command is removed when its result is stored. The result has the command's name: after a crash
// in between, the next owner sees that the command was carried out.
func (p *parking) carryOut(commands []amqp.Delivery) {
	orders, told := p.understand(commands)
	p.tell(told)
	for n := 0; len(orders) > 0 && p.ctx.Err() == nil; n++ {
		if n > 0 && !backoff.Sleep(p.ctx, backoff.Pause(n)) {
			return
		}
		errs := p.source.d.pub.sendEach(p.ctx, len(orders), func(i int, x *amqplink.Parcel) error {
			x.Key, x.Publishing = p.queue, orders[i].record
			x.Headers = clone(x.Headers) // which the pipeline recycles
			return nil
		})
		orders = p.carriedOut(orders, errs)
	}
}

// understand removes the withdrawn messages, and returns the orders to store. From here on, the
// name of a command is known: a result of an owner before may still come, and is not parked as
// well.
func (p *parking) understand(commands []amqp.Delivery) (orders []order, told []driver.Parked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range commands {
		c := &commands[i]
		kind, position := lot.Kind(text(c.Headers[parkHeader])), number(c, positionHeader)
		name := text(c.Headers[commandHeader])
		if name != "" && p.carried[name] { // by an owner before
			p.ackLocked(c.DeliveryTag)
			continue
		}
		if kind == lot.New {
			position = p.clock.Next()
		} else if e := p.entries[position]; e == nil || c.MessageId != "" && e.revision > 0 && e.id != maphash.String(idSeed, c.MessageId) {
			p.ackLocked(c.DeliveryTag) // it is gone, or another message has the place
			continue
		}
		if kind == lot.Withdraw {
			p.remove(position)
			p.ackLocked(c.DeliveryTag)
			told = append(told, lot.Withdrawn(p.lane, position))
			continue
		}
		if name != "" {
			p.carried[name] = true
		}
		o := order{command: c, record: republish(c), position: position, revision: p.revise(position)}
		o.record.Headers[parkHeader], o.record.Headers[positionHeader], o.record.Headers[revisionHeader] = parkMessage, position, o.revision
		orders = append(orders, o)
	}
	return orders, told
}

// carriedOut tells the router about stored orders, and returns the orders to try again.
func (p *parking) carriedOut(orders []order, errs []error) (left []order) {
	var told []driver.Parked
	p.mu.Lock()
	for i := range orders {
		o := &orders[i]
		e := p.entries[o.position]
		switch {
		case errs == nil || errs[i] == nil:
			if e != nil { // else it was settled, or withdrawn
				e.stored = max(e.stored, o.revision)
				told = append(told, parkedOf(o.command, p.lane, o.position))
			}
			p.ackLocked(o.command.DeliveryTag)
		case amqplink.Retryable(errs[i]):
			left = append(left, *o)
		default: // it can never be stored
			delete(p.carried, text(o.command.Headers[commandHeader]))
			p.strangers[o.command.DeliveryTag] = stranger{since: time.Now()}
			if e != nil {
				e.coming = max(0, e.coming-1)
			}
			if e != nil && e.revision == 0 {
				delete(p.entries, o.position)
			}
		}
	}
	p.mu.Unlock()
	p.tell(told)
	return left
}
