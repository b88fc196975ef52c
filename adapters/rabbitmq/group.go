package rabbitmq

import (
	"context"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
)

// groupState holds the facts that a member must know about its group.
type groupState struct {
	lanes int
	// begun: the group is set up. Nobody consumes before.
	begun bool
	// earliest: the group took over the messages that the topic kept while it had no group.
	earliest bool
	// early: some of that may still be in early queues.
	early bool
}

// prepare declares topic and group, and attaches the group to the topic. A group's first member
// also decides where the group starts.
func (d *busDriver) prepare(ctx context.Context, t *topology, sub bus.Subscription) (groupState, error) {
	group := groupName(sub.Topic, sub.Group)
	if err := t.declareTopic(d.cfg, sub.Topic); err != nil {
		return groupState{}, err
	}
	lanes, err := t.declareGroup(d.cfg, group)
	if err != nil {
		return groupState{}, err
	}
	state, err := t.state(group, lanes)
	if err != nil {
		return groupState{}, err
	}
	if state.begun {
		return state, t.attach(sub.Topic, group)
	}
	err = d.withMover(ctx, sub.Topic, func(ctx context.Context, m *mover) error {
		state, err = m.begin(ctx, d.cfg, sub, lanes)
		return err
	})
	return state, err
}

// begin attaches the group for the first time, and decides where it starts.
func (m *mover) begin(ctx context.Context, cfg Config, sub bus.Subscription, lanes int) (groupState, error) {
	group := groupName(sub.Topic, sub.Group)
	state, err := m.t.state(group, lanes)
	if err != nil || state.begun {
		return state, err // another member did it meanwhile
	}
	// From here on nothing more is kept, so all kept messages are older than those that the lanes
	// get.
	if err := m.t.attach(sub.Topic, group); err != nil {
		return groupState{}, err
	}
	state = groupState{lanes: lanes, begun: true, earliest: sub.Start == bus.Earliest}
	record, attempt := latestName(group), ""
	if state.earliest {
		if attempt, err = m.moveToGroup(ctx, cfg, group, lanes); err != nil {
			return groupState{}, fmt.Errorf("take over the messages that the topic kept: %w", err)
		}
		record = readyName(group)
		if state.early = attempt != ""; state.early {
			record = movedName(group)
		}
	}
	return state, m.t.declareExchange(record, amqp.ExchangeFanout, attempt)
}

// state reads how far the group is. Exchanges record it, because they can be made without a race
// and cost nothing. latestName records a group that started at the latest message. For other groups
// there are movedName, and readyName when no early queue is left, or there was none. The alternate
// exchange of movedName does not exist; it names the attempt that moved all: see lastEnd.
func (t *topology) state(group string, lanes int) (groupState, error) {
	s := groupState{lanes: lanes}
	var err error
	if s.begun, err = t.exchangeExists(readyName(group)); err != nil || s.begun {
		s.earliest = true
		return s, err
	}
	if s.begun, err = t.exchangeExists(latestName(group)); err != nil || s.begun {
		return s, err
	}
	if s.begun, err = t.exchangeExists(movedName(group)); err != nil || !s.begun {
		return s, err
	}
	s.earliest = true
	for i := range lanes {
		if _, s.early, err = t.queue(earlyName(group, i)); err != nil || s.early {
			return s, err
		}
	}
	return s, t.declareExchange(readyName(group), amqp.ExchangeFanout, "")
}

// lockFor excludes all other processes, and other callers in this one, from work on the named topic
// or stream. For a topic, the work is attaching a group to it. While the first group takes over the
// kept messages, a second group that attached would end the keeping too early for the first.
func (d *busDriver) lockFor(ctx context.Context, t *topology, name string) (unlock func(), err error) {
	d.mu.Lock()
	here := d.topicLocks[name] // excludes other callers in this process
	if here == nil {
		here = make(chan struct{}, 1)
		d.topicLocks[name] = here
	}
	d.mu.Unlock()
	select {
	case here <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := t.lock(ctx, name); err != nil {
		<-here
		return nil, err
	}
	return func() {
		t.unlock(name)
		<-here
	}, nil
}

// moveToGroup moves the kept messages into queues that are consumed before the lanes proper. Each
// lane gets an early queue with its share, and an end marker behind it. Moved behind the messages
// that the lanes have by now, older messages of a key would follow newer ones.
//
// A crash in between leaves the rest in the unrouted queue and the group not ready; the next member
// goes on. A message may be moved twice then, and an earlier end marker may already be there, with
// more messages behind it. So an end marker has the name of its attempt, and the group's record
// names the attempt that was completed.
//
// The early queues are made before anything is moved, lane 0's last. So the next mover knows
// whether end markers are due. attempt is empty if no message was kept.
func (m *mover) moveToGroup(ctx context.Context, cfg Config, group string, lanes int) (attempt string, err error) {
	_, begun, err := m.t.queue(earlyName(group, 0))
	if err != nil {
		return "", err
	}
	declare := func() error {
		for i := lanes - 1; i >= 0; i-- {
			if err := m.t.declareQueue(earlyName(group, i), laneArgs(cfg.Queue, m.t.session.Conn.Properties)); err != nil {
				return err
			}
		}
		return nil
	}
	moved, err := m.moveKept(ctx, declare, func(d *amqp.Delivery) (exchange, key string) {
		lane := 0 // as the broker does with a routing key that is no slot
		if s, ok := slotOf(d.RoutingKey); ok {
			lane = s % lanes
		}
		return "", earlyName(group, lane)
	})
	if err != nil || !moved && !begun {
		return "", err
	}
	attempt = movedName(group) + ":" + bus.NewID()[24:] // the random part: AMQP names have at most 255 bytes
	return attempt, m.send(ctx, lanes, func(i int, x *amqplink.Parcel) error {
		x.Key, x.Publishing = earlyName(group, i), marker(markEnd)
		x.MessageId = attempt
		return nil
	})
}

// lastEnd says whether nothing more was moved behind the end marker of this attempt. The exchange
// that records the attempt cannot be declared with another attempt.
func (t *topology) lastEnd(group, attempt string) (bool, error) {
	err := t.declareExchange(movedName(group), amqp.ExchangeFanout, attempt)
	if amqplink.HasCode(err, amqp.PreconditionFailed) {
		return false, nil
	}
	return err == nil, err
}

// Markers, which this driver sends to itself.
const (
	// markEnd is the last message of an early queue.
	markEnd = "end"
	// markFence shows a mover the end of the messages that it moves.
	markFence = "fence"
	// markWake tells a lane's active consumer that it is the active one, and that the group's
	// members changed.
	markWake = "wake"
)

func marker(kind string) amqp.Publishing {
	return amqp.Publishing{Headers: amqp.Table{markerHeader: kind}, DeliveryMode: amqp.Persistent, Type: "millrace." + kind}
}

// sweep republishes late messages from the unrouted queue of a topic that has groups: the broker
// was just routing them when the first group was attached. They go to all groups. The caller is a
// member of a group that took over the kept messages, so nothing else is in the queue.
func (d *busDriver) sweep(ctx context.Context, t *topology, topic string) error {
	kept, _, err := t.queue(unroutedName(topic))
	if err != nil || kept.Messages == 0 { // or there was no answer: then the next sweep finds them
		return err
	}
	return d.withMover(ctx, topic, func(ctx context.Context, m *mover) error {
		_, err := m.moveKept(ctx, func() error { return nil }, func(d *amqp.Delivery) (exchange, key string) { return groupsName(topic), d.RoutingKey })
		return err
	})
}
