package kafka

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// parkingLog is what the owner of a lane knows of its partition of the parking topic. It is guarded by the source's lock.
type parkingLog struct {
	// offsets are where the newest record of each parked message is, by position; -1 while the first is on its way.
	offsets map[int64]int64
	last    int64   // the last position that was given out
	heard   int64   // all below this offset is known
	settled []int64 // positions whose records are to be deleted
	ready   bool    // all that was parked before is known
}

// onTheWay is the offset of a record that is not written yet.
const onTheWay = -1

// position gives out the next one. It is a time, so that no position is given out twice, whoever was the owner before.
func (p *parkingLog) position() int64 {
	p.last = max(p.last+1, time.Now().UnixNano())
	return p.last
}

// wrote notes where a record is that this process has written.
func (p *parkingLog) wrote(r *kgo.Record) {
	if p.heard == r.Offset {
		p.heard++
	} // else somebody has written in between: the listener reads it
	if position, ok := positionOf(r.Key); ok && r.Value != nil {
		if _, known := p.offsets[position]; known { // not settled meanwhile
			p.put(position, r.Offset)
		}
	}
}

// put notes where the record of a parked message is.
func (p *parkingLog) put(position, offset int64) {
	if p.offsets == nil {
		p.offsets = map[int64]int64{}
	}
	if was, ok := p.offsets[position]; !ok || was < offset {
		p.offsets[position] = offset
	}
}

// remove has the record of a parked message deleted, if there is one.
func (p *parkingLog) remove(position int64) {
	if _, ok := p.offsets[position]; ok {
		delete(p.offsets, position)
		p.settled = append(p.settled, position)
	}
}

// extent is where a log begins and ends.
type extent struct{ start, end int64 }

// extents are those of a topic's partitions; none if there is no such topic.
func (d *driver) extents(ctx context.Context, topic string) (map[int32]extent, error) {
	starts, err := d.adm.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ends, err := d.adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, err
	}
	extents := map[int32]extent{}
	for p, start := range starts[topic] {
		if end, ok := ends.Lookup(topic, p); ok {
			extents[p] = extent{start.Offset, end.Offset}
		}
	}
	return extents, nil
}

// load reads what is parked in lanes that are about to be ours, and carries out the commands that wait there. It tries until ctx
// ends. It returns what the router has to be told, in order.
func (s *source) load(ctx context.Context, lanes []*lane) ([]bus.Parked, error) {
	if _, ok := s.observer.(bus.ParkingObserver); !ok {
		return nil, nil
	}
	var told []bus.Parked
	err := s.insist(ctx, "what is parked was not read", func() error {
		told = nil
		extents, err := s.driver.extents(ctx, s.parking)
		if err != nil {
			return err
		}
		for _, l := range lanes {
			ps, err := s.loadLane(ctx, l, extents[l.ID])
			if err != nil {
				return err
			}
			told = append(told, ps...)
		}
		return nil
	})
	return told, err
}

// loadLane reads a partition that nobody else writes to, but commands.
func (s *source) loadLane(ctx context.Context, l *lane, e extent) ([]bus.Parked, error) {
	parked := map[int64]bus.Parked{}
	commands := map[string]int64{} // by key, where they are
	log := parkingLog{heard: e.end}
	s.mu.Lock()
	if was := s.lanes[l.ID]; was != nil { // of our last ownership: settled, and not deleted yet
		log.settled = slices.Clone(was.parking.settled)
	}
	s.mu.Unlock()
	err := s.partition(l.ID).each(ctx, e.start, e.end, func(r *kgo.Record) (bool, error) {
		position, ok := positionOf(r.Key)
		switch {
		case ok && r.Value == nil:
			delete(parked, position)
			delete(log.offsets, position)
		case ok:
			parked[position] = parkedOf(r, l.Lane, position)
			log.put(position, r.Offset)
		case r.Value == nil:
			delete(commands, string(r.Key))
		default:
			commands[string(r.Key)] = r.Offset
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	for _, position := range log.settled {
		delete(parked, position)
		delete(log.offsets, position)
	}
	told := slices.SortedFunc(maps.Values(parked), func(a, b bus.Parked) int { return cmp.Compare(a.Position, b.Position) })
	if len(told) > 0 {
		log.last = told[len(told)-1].Position
	}
	s.mu.Lock()
	l.parking = log
	s.mu.Unlock()
	changes, err := s.carryOut(ctx, l, slices.Sorted(maps.Values(commands)))
	s.mu.Lock()
	l.parking.ready = err == nil
	s.mu.Unlock()
	return append(told, changes...), err
}

// deeds are what comes of commands.
type deeds struct {
	told    []bus.Parked
	changes []kgo.Record
	done    []kgo.Record // removes the commands: written after the changes, so that a crash repeats a command and loses none
}

// carryOut reads the commands at these offsets, in order, and does what they say. It tries until ctx ends, and returns what
// the router is to be told.
func (s *source) carryOut(ctx context.Context, l *lane, offsets []int64) ([]bus.Parked, error) {
	var told []bus.Parked
	for chunk := range slices.Chunk(offsets, 256) {
		records, err := s.partition(l.ID).at(ctx, chunk)
		if err != nil {
			return nil, err
		}
		var d deeds
		s.mu.Lock()
		for _, offset := range chunk {
			if r := records[offset]; r != nil {
				l.obey(r, &d)
			}
		}
		s.mu.Unlock()
		for _, records := range [][]kgo.Record{d.changes, d.done} {
			// Each try writes the same records, so that nothing is parked twice when some of them had been written.
			err := s.insist(ctx, "what was parked from outside was not taken over", func() error {
				return s.writeFor(ctx, l, records)
			})
			if err != nil {
				return nil, err
			}
		}
		told = append(told, d.told...)
	}
	return told, nil
}

// obey does what a command says, as far as it still can be done.
func (l *lane) obey(r *kgo.Record, d *deeds) {
	c, _ := commandOf(r) // what is none of ours is deleted, too
	position := c.position
	if c.kind == commandNew {
		position = l.parking.position()
		l.parking.put(position, onTheWay)
	}
	_, known := l.parking.offsets[position]
	switch {
	case !known:
	case c.kind == commandWithdraw:
		delete(l.parking.offsets, position)
		d.told = append(d.told, bus.Parked{Token: bus.Token{Lane: l.ID, Epoch: l.Epoch, Position: position, Parked: true}, Withdrawn: true})
		d.changes = append(d.changes, removal(r.Topic, r.Partition, positionKey(position)))
	default:
		d.told = append(d.told, parkedOf(r, l.Lane, position))
		d.changes = append(d.changes, moved(r, position))
	}
	d.done = append(d.done, removal(r.Topic, r.Partition, r.Key))
}

// writeFor writes records of one lane, and notes where they are.
func (s *source) writeFor(ctx context.Context, l *lane, records []kgo.Record) error {
	written, err := s.write(ctx, records)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range written {
		l.parking.wrote(&written[i])
	}
	return nil
}

// write writes records to the parking topic: all, or it is not known which. It returns them with their offsets. The given ones
// stay as they are; of a try that failed, the client may still be at work on its own.
func (s *source) write(ctx context.Context, records []kgo.Record) ([]kgo.Record, error) {
	if len(records) == 0 {
		return nil, nil
	}
	written := slices.Clone(records)
	if err := s.driver.park(ctx, s.parking, s.sub.Topic, written); err != nil {
		return nil, err
	}
	return written, nil
}

// partition is the lane's log in the parking topic.
func (s *source) partition(lane int32) *partitionLog {
	return &partitionLog{driver: s.driver, topic: s.parking, partition: lane}
}
