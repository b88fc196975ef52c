package rabbitmq

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// topology declares and inspects. A refusal closes the channel; the next request opens another.
type topology struct {
	session *amqplink.Session
	ch      *amqp.Channel
}

func (t *topology) channel() (*amqp.Channel, error) {
	if t.ch == nil || t.ch.IsClosed() {
		ch, err := t.session.Conn.Channel()
		if err != nil {
			return nil, err
		}
		t.ch = ch
	}
	return t.ch, nil
}

func (t *topology) close() {
	if t.ch != nil {
		_ = t.ch.Close() // if it fails, the session has ended
	}
}

// call runs f with a channel of its own, in a goroutine of its own, and waits for it within ctx: no
// request of the client library heeds a context. When ctx ends first, f ends with the broker's
// answer or with the session.
func call[T any](ctx context.Context, s *amqplink.Session, f func(ctx context.Context, t *topology) (T, error)) (T, error) {
	answer := amqplink.Start(func() (T, error) {
		t := &topology{session: s}
		defer t.close()
		return f(ctx, t)
	})
	select {
	case <-answer.Done():
		return answer.Result()
	case <-ctx.Done():
		var zero T
		return zero, fmt.Errorf("waiting for the broker's answer: %w", context.Cause(ctx))
	}
}

// queue inspects a queue; ok is false if there is none.
func (t *topology) queue(name string) (q amqp.Queue, ok bool, err error) {
	ch, err := t.channel()
	if err != nil {
		return q, false, err
	}
	q, err = ch.QueueDeclarePassive(name, true, false, false, false, nil)
	if amqplink.HasCode(err, amqp.NotFound) {
		return q, false, nil
	}
	return q, err == nil, err
}

// declareQueue makes a durable queue unless it exists. An existing queue is used as it is, whatever
// its arguments: a change of configuration must not stop a service.
func (t *topology) declareQueue(name string, args amqp.Table) error {
	ch, err := t.channel()
	if err != nil {
		return err
	}
	_, err = ch.QueueDeclare(name, true, false, false, false, args)
	if amqplink.HasCode(err, amqp.PreconditionFailed) {
		if _, ok, err := t.queue(name); ok || err != nil {
			return err
		}
	}
	return err
}

func (t *topology) deleteQueue(name string) error {
	ch, err := t.channel()
	if err != nil {
		return err
	}
	_, err = ch.QueueDelete(name, false, false, false)
	return err
}

func (t *topology) exchangeExists(name string) (bool, error) {
	ch, err := t.channel()
	if err != nil {
		return false, err
	}
	err = ch.ExchangeDeclarePassive(name, amqp.ExchangeFanout, true, false, false, false, nil)
	if amqplink.HasCode(err, amqp.NotFound) {
		return false, nil
	}
	return err == nil, err
}

func (t *topology) declareExchange(name, kind, alternate string) error {
	ch, err := t.channel()
	if err != nil {
		return err
	}
	var args amqp.Table
	if alternate != "" {
		args = amqp.Table{"alternate-exchange": alternate}
	}
	return ch.ExchangeDeclare(name, kind, true, false, false, false, args)
}

// declareTopic makes the topic's exchange, and behind it, for messages that no group takes yet, the
// unrouted queue.
func (t *topology) declareTopic(cfg Config, topic string) error {
	unrouted := unroutedName(topic)
	err := t.declareQueue(unrouted, unroutedArgs(cfg, t.session.Conn.Properties))
	if err == nil {
		err = t.declareExchange(unrouted, amqp.ExchangeFanout, "")
	}
	if err == nil {
		err = t.ch.QueueBind(unrouted, "", unrouted, false, nil)
	}
	if err == nil {
		err = t.declareExchange(topic, amqp.ExchangeFanout, unrouted)
	}
	if err == nil {
		// Should somebody have deleted the topic's exchange, its groups are on it again before
		// anything is published.
		if err = t.ch.ExchangeBind(groupsName(topic), "", topic, false, nil); amqplink.HasCode(err, amqp.NotFound) {
			err = nil // it has had no group yet
		}
	}
	if err != nil {
		return fmt.Errorf("declare the topic: %w", err)
	}
	return nil
}

func unroutedArgs(cfg Config, server amqp.Table) amqp.Table {
	return unlimited(server, amqp.Table{
		amqp.QueueTypeArg:     cfg.Queue,
		amqp.QueueMaxLenArg:   int64(cfg.Unrouted),
		amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish,
	})
}

// declareGroup makes the group's exchange, lanes and bindings, and returns the number of lanes. The
// group is not attached to the topic yet.
func (t *topology) declareGroup(cfg Config, group string) (lanes int, err error) {
	exists, err := t.exchangeExists(group)
	if err == nil && !exists { // groupLanes looks for it where there is the group
		err = t.declareExchange(lanesName(group, cfg.Lanes), amqp.ExchangeFanout, "")
	}
	if err == nil {
		lanes, err = t.groupLanes(group, cfg.Lanes)
	}
	if err != nil {
		return 0, fmt.Errorf("declare the group: %w", err)
	}
	// A routing key that is no slot is a foreign publisher's. Its messages all go to one lane, in
	// order.
	if err := t.declareExchange(lanesName(group, lanes), amqp.ExchangeFanout, ""); err != nil {
		return 0, fmt.Errorf("declare the group: %w", err)
	}
	for i := range lanes {
		if err := t.declareLane(cfg, group, lanes, i); err != nil {
			return 0, err
		}
	}
	return lanes, nil
}

// declareLane makes the queues of a lane, and binds its slots.
func (t *topology) declareLane(cfg Config, group string, lanes, lane int) error {
	name := laneName(group, lane)
	if err := t.declareQueue(name, laneArgs(cfg.Queue, t.session.Conn.Properties)); err != nil {
		return fmt.Errorf("declare lane %d: %w", lane, err)
	}
	if err := t.declareQueue(parkedName(group, lane), laneArgs(cfg.Queue, t.session.Conn.Properties)); err != nil {
		return fmt.Errorf("declare the parking queue of lane %d: %w", lane, err)
	}
	ch, err := t.channel()
	if err != nil {
		return err
	}
	if lane == 0 {
		if err := ch.QueueBind(name, "", lanesName(group, lanes), true, nil); err != nil {
			return fmt.Errorf("bind lane 0: %w", err)
		}
	}
	for s := lane; s < slots; s += lanes {
		// A channel's requests are served in order and a refusal closes it, so the last answer
		// stands for all.
		if err := ch.QueueBind(name, routingKeys[s], group, s+lanes < slots, nil); err != nil {
			return fmt.Errorf("bind lane %d: %w", lane, err)
		}
	}
	return nil
}

// laneArgs are the arguments of a lane's queues.
func laneArgs(queue string, server amqp.Table) amqp.Table {
	return unlimited(server, amqp.Table{amqp.QueueTypeArg: queue, amqp.SingleActiveConsumerArg: true})
}

// unlimited adds to a queue's arguments that it drops nothing, however often it delivers it.
// RabbitMQ 4 drops a message that a quorum queue took back 20 times. There, -1 means no limit.
// Before RabbitMQ 4, -1 is a limit that drops a message the first time it is given back (seen on
// 3.10.8).
//
// A queue that exists keeps the arguments that it was made with, and a policy wins over them: see
// maxReturns, maxLaneReturns and minLimit.
func unlimited(server, args amqp.Table) amqp.Table {
	version, _ := server["version"].(string)
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err == nil && n >= 4 && args[amqp.QueueTypeArg] == Quorum {
		args["x-delivery-limit"] = int64(-1)
	}
	return args
}

// groupLanes declares the group's exchange, and returns how many lanes the group has: want, if this
// call makes it.
//
// The number is part of the exchange's alternate exchange, which cannot be changed, so the first
// member decides. A later member that wants another number is refused, and finds out which
// alternate exchange there is. (The refusal quotes it, but is cut off at 255 bytes.) A record kept
// in a queue would have no such test-and-set.
func (t *topology) groupLanes(group string, want int) (int, error) {
	refused := t.declareExchange(group, amqp.ExchangeDirect, lanesName(group, want))
	if refused == nil {
		return want, nil
	}
	if !amqplink.HasCode(refused, amqp.PreconditionFailed) {
		return 0, refused
	}
	for n := 1; n <= slots; n++ {
		ok, err := t.exchangeExists(lanesName(group, n))
		if err == nil && ok {
			if err = t.declareExchange(group, amqp.ExchangeDirect, lanesName(group, n)); err == nil {
				return n, nil
			}
		}
		if err != nil && !amqplink.HasCode(err, amqp.PreconditionFailed) {
			return 0, err
		}
	}
	return 0, refused // not an exchange of ours
}

// existingLanes is groupLanes for a group that must exist.
func (d *busDriver) existingLanes(t *topology, group string) (int, error) {
	ok, err := t.exchangeExists(group)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, bus.ErrNotFound
	}
	lanes, ok := d.lanes.Load(group)
	if !ok {
		lanes = DefaultLanes
	}
	n, err := t.groupLanes(group, lanes.(int))
	if err == nil {
		d.lanes.Store(group, n)
	}
	return n, err
}

// attach makes the topic's messages flow to the group. Groups are bound to an exchange of their
// own, and this exchange is bound to the topic's. The last missing binding lets all slots begin at
// the same message.
func (t *topology) attach(topic, group string) error {
	groups := groupsName(topic)
	if err := t.declareExchange(groups, amqp.ExchangeFanout, unroutedName(topic)); err != nil {
		return err
	}
	if err := t.ch.ExchangeBind(group, "", groups, false, nil); err != nil {
		return err
	}
	return t.ch.ExchangeBind(groups, "", topic, false, nil)
}

// lock takes the lock of a topic or of a poison store: a queue that only one connection at a time
// can have. The broker frees the lock when the connection ends. Callers of one connection exclude
// each other beforehand.
func (t *topology) lock(ctx context.Context, name string) error {
	for n := 0; ; n++ {
		ch, err := t.channel()
		if err != nil {
			return err
		}
		_, err = ch.QueueDeclare(lockName(name), false, false, true, false, nil)
		if !amqplink.HasCode(err, amqp.ResourceLocked) {
			return err
		}
		if !backoff.Sleep(ctx, backoff.Pause(min(n, 1)+1)) {
			return fmt.Errorf("another process is setting up %q: %w", name, context.Cause(ctx))
		}
	}
}

// unlock gives the lock back. If that fails, the connection has ended, which frees it.
func (t *topology) unlock(name string) { _ = t.deleteQueue(lockName(name)) }
