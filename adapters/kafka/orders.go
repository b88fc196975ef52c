package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/parking"
)

// order is a command in a lane's parking log, and how far it is carried out. Each try does the
// same, so that nothing is parked twice when one that failed had been written.
type order struct {
	key       string
	offset    int64
	position  int64 // the place of a new parked message; 0: not decided
	withdraws bool  // the message is out of the index, and its record must be deleted
	done      bool  // delete only the command, after its effect: a crash repeats it and loses none
	foreign   bool  // it is not for us, and stays: a later version's, perhaps
}

var errLeaving = errors.New("the lane is being handed over")

// carryOut carries out the commands that wait in a lane's log, and tells the router. Failed
// commands are left for the next time.
func (s *source) carryOut(ctx context.Context, o driver.ParkingObserver, l *lane) error {
	s.mu.Lock()
	var todo []*order
	for _, c := range l.parking.orders {
		if !c.done && !c.foreign {
			todo = append(todo, c)
		}
	}
	s.mu.Unlock()
	var errs []error
	for chunk := range slices.Chunk(todo, 256) {
		if err := s.carryOutSome(ctx, o, l, chunk); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.removeDone(ctx, l))...)
}

func (s *source) carryOutSome(ctx context.Context, o driver.ParkingObserver, l *lane, orders []*order) error {
	commands, stored, err := s.readOrders(ctx, l, orders)
	if err != nil {
		return err
	}
	var changes []kgo.Record
	var of []*order
	var told []driver.Parked
	var errs []error
	s.mu.Lock()
	if l.leaving {
		s.mu.Unlock()
		return errLeaving
	}
	for _, c := range orders {
		r := commands[c.offset]
		if r == nil { // another owner has carried it out and deleted it
			c.done = true
			continue
		}
		change, parked, err := l.obey(c, r, stored)
		if err != nil {
			errs = append(errs, err)
		}
		if change.Key != nil {
			changes, of, told = append(changes, change), append(of, c), append(told, parked)
		}
	}
	s.mu.Unlock()
	written, outcomes := s.write(ctx, changes)
	s.tellParked(o, l, func() (news []driver.Parked) {
		for i := range written {
			if outcomes != nil && outcomes[i] != nil {
				continue
			}
			l.parking.wrote(&written[i])
			of[i].done = true
			news = append(news, told[i])
		}
		return news
	})
	return errors.Join(append(errs, firstError(outcomes))...)
}

// readOrders reads commands, and the messages that they concern, by position.
func (s *source) readOrders(ctx context.Context, l *lane, orders []*order) (commands map[int64]*kgo.Record, stored map[int64]*kgo.Record, err error) {
	offsets := make([]int64, len(orders))
	for i, c := range orders {
		offsets[i] = c.offset
	}
	if commands, err = s.partition(l.ID).at(ctx, offsets); err != nil {
		return nil, nil, err
	}
	positions := map[int64]int64{}
	s.mu.Lock()
	for _, r := range commands {
		c, ok := commandOf(r)
		if !ok || c.Kind == parking.New || c.id == "" {
			continue
		}
		switch state, offset := l.parking.At(c.Position); state {
		case parking.Lost:
			err = errAnew
		case parking.Stored:
			positions[offset] = c.Position
		}
	}
	s.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	stored = map[int64]*kgo.Record{}
	offsets = offsets[:0]
	for offset := range positions {
		offsets = append(offsets, offset)
	}
	slices.Sort(offsets)
	found, err := s.partition(l.ID).at(ctx, offsets)
	for offset, r := range found {
		stored[positions[offset]] = r
	}
	return commands, stored, err
}

// obey makes the record that carries out a command, and the message to tell the router of. There is
// no record if the command cannot be carried out, or was. Called with the lock held.
func (l *lane) obey(c *order, r *kgo.Record, stored map[int64]*kgo.Record) (change kgo.Record, told driver.Parked, err error) {
	says, ok := commandOf(r)
	if !ok {
		c.foreign = true
		return change, told, fmt.Errorf("record %d of partition %d of topic %q is no command that this version knows; the record stays in the topic", r.Offset, r.Partition, r.Topic)
	}
	command, same := says.Command, true
	switch {
	case c.position != 0: // of an earlier try
		command = parking.Command{Kind: parking.Replace, Position: c.position}
	case says.Kind != parking.New && says.id != "":
		m := stored[says.Position]
		same = m != nil && idOf(m) == says.id
	}
	position, ok := l.parking.Apply(command, same)
	if says.Kind == parking.New {
		c.position = position
	}
	switch {
	case !ok && !c.withdraws: // it is gone, or another message has the place
		c.done = true
		return change, told, nil
	case says.Kind == parking.Withdraw:
		c.withdraws = true
		return removal(r.Topic, r.Partition, positionKey(position)), parking.Withdrawn(l.Lane, position), nil
	default:
		change, err = moved(r, position, ownerName(l.Epoch))
		return change, parkedOf(r, l.Lane, position), err
	}
}

// removeDone deletes commands that were carried out.
func (s *source) removeDone(ctx context.Context, l *lane) error {
	var records []kgo.Record
	removed := map[string]bool{}
	s.mu.Lock()
	for _, c := range l.parking.orders {
		if c.done {
			records = append(records, removal(s.parking, l.ID, []byte(c.key)))
		}
	}
	s.mu.Unlock()
	written, outcomes := s.write(ctx, records)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range written {
		if outcomes == nil || outcomes[i] == nil {
			l.parking.wrote(&written[i])
			removed[string(written[i].Key)] = true
		}
	}
	l.parking.orders = slices.DeleteFunc(l.parking.orders, func(c *order) bool { return removed[c.key] })
	return firstError(outcomes)
}
