package kafka

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/parking"
)

// parkingLog is a lane owner's knowledge of the lane's partition of the parking topic. It is
// guarded by the source's lock.
type parkingLog struct {
	parking.Index // the parked messages; versions are offsets

	orders []*order // commands that wait here, in the order in which they came
	ready  bool     // the router knows of all that was parked before

	topic [16]byte // the topic's id; zero where the broker has none
	heard int64    // all below this offset is known
	top   int64    // how far the log has been seen to reach
	short int      // how many times in a row it was seen to end before that
	odd   bool     // a record was found where another one should be
	anew  bool     // the index is of another log: the log is read from its start

	settled  []int64 // positions of records to delete, in order
	dropped  int     // how many are not in settled any more
	approved int     // how many, with those dropped, were settled before a commit that succeeded
}

// finish ends a parked message, or a message that is done with at its origin. Its record, if there
// is one, will be deleted.
func (p *parkingLog) finish(t bus.Token) {
	if position, left := p.Settle(t); left {
		p.settled = append(p.settled, position)
	}
}

// wrote notes where a record is that this process has written.
func (p *parkingLog) wrote(r *kgo.Record) {
	p.top = max(p.top, r.Offset+1)
	if p.heard == r.Offset {
		p.heard++
	} // else somebody has written in between: the listener reads it
	if position, ok := positionOf(r.Key); ok && r.Value != nil && p.Stored(position, r.Offset) {
		p.settled = append(p.settled, position)
	}
}

// loadLane reads a partition that nobody else writes to, but commands.
func (s *source) loadLane(ctx context.Context, l *lane, e extent, topic [16]byte, patience time.Duration) ([]driver.Parked, error) {
	parked := map[int64]driver.Parked{}
	commands := map[string]*order{}
	carriedOut := map[string]int64{} // commands, by the positions of the messages that they parked
	log := parkingLog{heard: e.end, top: e.end, topic: topic}
	s.mu.Lock()
	if was := s.lanes[l.ID]; was != nil { // of our last ownership: settled, and not deleted yet
		log.settled = slices.Clone(was.parking.settled)
	}
	s.mu.Unlock()
	reader := s.partition(l.ID)
	reader.patience = patience
	err := reader.each(ctx, e.start, e.end, func(r *kgo.Record) (bool, error) {
		position, ok := positionOf(r.Key)
		switch {
		case ok && r.Value == nil:
			delete(parked, position)
			log.Forget(position)
		case ok:
			parked[position] = parkedOf(r, l.Lane, position)
			log.Adopt(position, r.Offset)
			if mayCarryOut(r) {
				carriedOut[factsOf(r).Command] = position
			}
		case r.Value == nil:
			delete(commands, string(r.Key))
		default:
			commands[string(r.Key)] = &order{key: string(r.Key), offset: r.Offset}
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	for _, position := range log.settled {
		delete(parked, position)
		t := parking.Token(l.Lane, position)
		log.Reserve(t) // whether its record is still there or not
		log.Settle(t)
	}
	for key, position := range carriedOut {
		c := commands[key]
		if log.Known(position) && c != nil {
			c.done = true // and was to be deleted
		}
	}
	told := slices.SortedFunc(maps.Values(parked), func(a, b driver.Parked) int { return cmp.Compare(a.Position, b.Position) })
	if len(told) > 0 {
		log.Seen(told[len(told)-1].Position)
	}
	log.orders = slices.SortedFunc(maps.Values(commands), func(a, b *order) int { return cmp.Compare(a.offset, b.offset) })
	s.mu.Lock()
	defer s.mu.Unlock()
	l.parking = log
	return told, nil
}

// ownerName names the ownership that writes a record, in this process and among others.
func ownerName(epoch uint64) string { return process + "/" + strconv.FormatUint(epoch, 36) }

var process = bus.NewID()

// write writes records to the parking topic. It returns copies with their offsets, and each
// record's error; nil if all are durable. The given records stay as they are: after a failed try,
// the client may still be at work on the copies.
func (s *source) write(ctx context.Context, records []kgo.Record) ([]kgo.Record, []error) {
	if len(records) == 0 {
		return nil, nil
	}
	written := slices.Clone(records)
	return written, s.driver.park(ctx, s.parking, s.sub.Topic, written)
}

// partition is the lane's log in the parking topic.
func (s *source) partition(lane int32) *partitionLog {
	return &partitionLog{driver: s.driver, topic: s.parking, partition: lane}
}
