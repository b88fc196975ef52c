package memory

import (
	"context"
	"fmt"
	"slices"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// parkedMessages holds a group's parked messages of one lane, by position. The topic's lock guards
// it.
type parkedMessages struct {
	byPosition map[int64]driver.Parking
	last       int64 // the last position in use
}

// put stores p at its place, or behind all others.
func (m *parkedMessages) put(p *driver.Parking, lane int32, epoch uint64) {
	if m.byPosition == nil {
		m.byPosition = map[int64]driver.Parking{}
	}
	if !p.Token.Parked {
		m.last++
		p.Token = bus.Token{Lane: lane, Position: m.last, Parked: true}
	}
	p.Epoch = epoch
	stored := *p
	stored.Message = p.Message.Clone()
	m.byPosition[p.Position] = stored
}

// all returns the parked messages for the lane's owner, in order.
func (m *parkedMessages) all(epoch uint64) []driver.Parked {
	ps := make([]driver.Parked, 0, len(m.byPosition))
	for _, p := range m.byPosition {
		ps = append(ps, parkedOf(&p, epoch))
	}
	slices.SortFunc(ps, func(a, b driver.Parked) int { return int(a.Position - b.Position) })
	return ps
}

func parkedOf(p *driver.Parking, epoch uint64) driver.Parked {
	token := p.Token
	token.Epoch = epoch
	return driver.Parked{Token: token, Key: p.Key, Due: p.Due, Delayed: p.Delayed}
}

// Park implements driver.ParkingSource.
func (s *source) Park(_ context.Context, ps []driver.Parking) error {
	t := s.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.closed {
		return fail("park", t.name, bus.ErrClosed)
	}
	stale := 0
	for i := range ps {
		l := s.lane(ps[i].Token)
		if l == nil {
			stale++
			continue
		}
		if !ps[i].Token.Parked {
			l.window.Done(ps[i].Position)
		} else if _, ok := l.parked.byPosition[ps[i].Position]; !ok {
			continue // it was withdrawn
		}
		l.parked.put(&ps[i], ps[i].Lane, l.epoch)
	}
	if t.waiting > 0 {
		t.room.Broadcast()
	}
	if stale > 0 {
		return fail("park", t.name, fmt.Errorf("%d of %d: %w", stale, len(ps), bus.ErrStale))
	}
	return nil
}

// Fetch implements driver.ParkingSource.
func (s *source) Fetch(_ context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	t := s.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.closed {
		return 0, fail("fetch", t.name, bus.ErrClosed)
	}
	n := 0
	for _, token := range tokens {
		l := s.lane(token)
		if l == nil {
			continue
		}
		p, ok := l.parked.byPosition[token.Position]
		if !ok {
			continue
		}
		dst[n] = p.Delivery
		dst[n].Message, dst[n].Token = p.Message.Clone(), token
		n++
	}
	return n, nil
}

// Inject implements driver.Injector.
func (d *busDriver) Inject(_ context.Context, topic, group string, ps []driver.Parking) error {
	d.mu.Lock()
	over := d.isOver
	d.mu.Unlock()
	if over {
		return fail("inject", topic, bus.ErrClosed)
	}
	t := d.store.topic(topic)
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.groups[group]
	if g == nil {
		return fail("inject", topic, fmt.Errorf("group %q: %w", group, bus.ErrNotFound))
	}
	for _, p := range ps {
		id := p.Token.Lane
		if !p.Token.Parked {
			id = int32(t.laneOf(p.Message))
		}
		if id < 0 || id >= lanes {
			continue
		}
		l := &g.lanes[id]
		change := driver.Parked{Token: p.Token}
		if p.Token.Parked {
			if old, ok := l.parked.byPosition[p.Position]; !ok || old.ID != p.Message.ID {
				continue // it is gone, or another message has its place
			}
		}
		if p.Withdraw {
			delete(l.parked.byPosition, p.Position)
			change.Withdrawn = true
		} else {
			p.Topic = topic
			l.parked.put(&p, id, l.epoch)
			change = parkedOf(&p, l.epoch)
		}
		if l.owner != nil {
			change.Epoch = l.epoch
			tell(l.owner.observer, []driver.Parked{change})
		}
	}
	return nil
}

// lane is the lane of a token, or nil if the token is stale.
func (s *source) lane(t bus.Token) *groupLane {
	if t.Lane < 0 || t.Lane >= lanes {
		return nil
	}
	if l := &s.group.lanes[t.Lane]; l.owner == s && l.epoch == t.Epoch {
		return l
	}
	return nil
}

// tell tells a router of parked messages, if it can handle them.
func tell(o bus.LaneObserver, ps []driver.Parked) {
	if po, ok := o.(driver.ParkingObserver); ok && len(ps) > 0 {
		po.Parked(ps)
	}
}
