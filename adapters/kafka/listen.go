package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus/driver"
)

const (
	// listenInterval is how often a source looks for other writers' records in the parking logs of
	// its lanes.
	listenInterval = time.Second
	// listenTimeout bounds how long a leader that does not answer holds up the next look at the others.
	listenTimeout = 5 * time.Second
	// shortLooks is how many looks in a row must find the log shorter than before until the source
	// believes it. For a moment after a change of leaders, the new leader may not know how far the
	// log reaches.
	shortLooks = 5
)

// errAnew: the parking log is another log than the source has read.
var errAnew = errors.New("the parking topic was created anew or cut off, and is being read again")

// listener hears what others write: commands to park, change or withdraw messages, and late records
// of earlier owners. Each lane is heard for itself: a lane that waits does not hold up the others.
func (s *source) listener() {
	o, ok := s.observer.(driver.ParkingObserver)
	if !ok {
		return
	}
	var hearing sync.WaitGroup
	defer hearing.Wait()
	ticker := time.NewTicker(listenInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-s.ready:
		case <-s.ctx.Done():
			return
		}
		for _, n := range s.news() {
			hearing.Go(func() {
				switch err := s.hear(o, n); {
				case err == nil, errors.Is(err, errLeaving):
					s.conditions.Report(fmt.Sprint("listener of ", n.lane.ID), "", nil)
				case s.ctx.Err() == nil:
					s.conditions.Report(fmt.Sprint("listener of ", n.lane.ID), notHeard(n.lane.ID), fail("receive", s.sub.Topic, err))
				}
				s.mu.Lock()
				close(n.lane.hearing)
				n.lane.hearing = nil
				s.mu.Unlock()
			})
		}
	}
}

// listenTo begins to listen to lanes that the observer knows.
func (s *source) listenTo(changes []change) {
	s.mu.Lock()
	for _, c := range changes {
		c.now.parking.ready = true
	}
	s.mu.Unlock()
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// news is a lane with records in its log to hear or to carry out.
type news struct {
	lane *lane
	end  int64
}

// news asks for the ends of the logs. The ends say whether there is any.
func (s *source) news() []news {
	var partitions []int32
	s.mu.Lock()
	for p, l := range s.lanes {
		if l.parking.ready && l.hearing == nil {
			partitions = append(partitions, p)
		}
	}
	s.mu.Unlock()
	if len(partitions) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, listenTimeout)
	defer cancel()
	topic, err := s.driver.topics.find(ctx, s.parking)
	extents := s.driver.extents(ctx, topic, partitions)
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []news
	for _, p := range partitions {
		l := s.lanes[p]
		if l == nil || l.leaving || !l.parking.ready || l.hearing != nil {
			continue
		}
		e, asked := extents[p]
		if !asked && (err == nil || isMissing(err)) { // there is no log
			s.wrong(notHeard(p), nil)
			continue
		}
		if !asked || e.err != nil {
			s.wrong(notHeard(p), fmt.Errorf("topic %q cannot be read: %w", s.parking, cmp.Or(e.err, err)))
			continue
		}
		s.wrong(notHeard(p), nil)
		l.parking.compare(e, topic.TopicID)
		if l.parking.heard < e.end || l.parking.anew || len(l.parking.orders) > 0 {
			l.hearing = make(chan struct{})
			all = append(all, news{l, e.end})
		}
	}
	return all
}

// compare checks whether the log is still the one that was read. If it is not, the known messages
// are looked for again, from the log's start.
func (p *parkingLog) compare(e extent, topic [16]byte) {
	another := p.topic != topic && p.topic != [16]byte{}
	p.topic = topic
	if p.short++; e.end >= max(p.heard, p.top) {
		p.short = 0
	}
	if another || p.odd || p.short >= shortLooks {
		p.anew, p.odd, p.short, p.top, p.heard = true, false, 0, e.end, e.start
		p.orders = nil
		p.Lose()
	}
	p.heard = max(p.heard, min(e.start, e.end)) // earlier records were deleted
}

// hear reads the new records of a lane's parking log, tells the router of messages that it does not
// know, and carries out commands.
func (s *source) hear(o driver.ParkingObserver, n news) error {
	l := n.lane
	s.mu.Lock()
	heard := l.parking.heard
	s.mu.Unlock()
	var orders []*order
	unknown := map[int64]late{}
	err := s.partition(l.ID).each(s.ctx, heard, n.end, func(r *kgo.Record) (bool, error) {
		position, isMessage := positionOf(r.Key)
		switch {
		case !isMessage && r.Value != nil:
			orders = append(orders, &order{key: string(r.Key), offset: r.Offset})
		case !isMessage:
			orders = slices.DeleteFunc(orders, func(c *order) bool { return c.key == string(r.Key) })
		case r.Value == nil:
			delete(unknown, position)
		case !s.placed(l, position, r.Offset) && factsOf(r).Writer != ownerName(l.Epoch):
			unknown[position] = late{parkedOf(r, l.Lane, position), r.Offset}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	s.tellParked(o, l, func() []driver.Parked {
		l.parking.heard = max(l.parking.heard, n.end)
		l.parking.top = max(l.parking.top, n.end)
		l.parking.orders = append(l.parking.orders, orders...)
		if l.parking.anew {
			l.parking.anew = false
			l.parking.Prune() // it went with the log
		}
		return l.parking.adopt(unknown)
	})
	return s.carryOut(s.ctx, o, l)
}

// placed notes where a message's record is, if the message is known.
func (s *source) placed(l *lane, position, offset int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.parking.Found(position, offset)
}

// late is a parked message that this ownership neither found nor wrote, and where its record is.
type late struct {
	driver.Parked
	offset int64
}

// adopt takes over messages that another owner has parked here. An earlier owner may have written
// too late for our reading; a later owner may not be known to us yet. Deleting the messages would
// lose those with a committed origin; adopting them can only repeat some. Called with the lock
// held.
func (p *parkingLog) adopt(unknown map[int64]late) []driver.Parked {
	var adopted []driver.Parked
	for position, m := range unknown {
		if p.Adopt(position, m.offset) {
			adopted = append(adopted, m.Parked)
		}
	}
	slices.SortFunc(adopted, func(a, b driver.Parked) int { return cmp.Compare(a.Position, b.Position) })
	return adopted
}

// tellParked makes changes, with the lock held, and tells the observer of them, unless the lane is leaving.
func (s *source) tellParked(o driver.ParkingObserver, l *lane, change func() []driver.Parked) {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.mu.Lock()
	told := change()
	ours := s.lanes[l.ID] == l && !l.leaving
	s.mu.Unlock()
	if ours && len(told) > 0 {
		o.Parked(told)
	}
	s.wakeCommitter()
}

// hush returns when the observer is not being told of leaving lanes. Unless it takes long, hush
// also waits until no command is being carried out in them: the next owner would not see the
// outcome, and repeat the command.
func (s *source) hush(lanes ...*lane) {
	timeout := time.NewTimer(listenTimeout)
	defer timeout.Stop()
	for _, l := range lanes {
		s.mu.Lock()
		hearing := l.hearing
		s.mu.Unlock()
		if hearing == nil {
			continue
		}
		select {
		case <-hearing:
		case <-timeout.C:
			timeout.Reset(0) // for the others, too
		}
	}
	s.telling.Lock()
	defer s.telling.Unlock()
}
