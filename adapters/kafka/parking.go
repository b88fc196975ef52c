package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// owned is the lane of a token, or nil if the token is stale. Called with the lock held.
func (s *source) owned(t bus.Token) *lane {
	if l := s.lanes[t.Lane]; l != nil && l.Epoch == t.Epoch {
		return l
	}
	return nil
}

// Park implements bus.ParkingSource.
func (s *source) Park(ctx context.Context, ps []bus.Parking) error {
	for {
		positions, err := s.places(ps)
		if err != nil {
			return err
		}
		var records []kgo.Record
		var tokens []bus.Token
		for i := range ps {
			if positions[i] == 0 {
				continue
			}
			var r kgo.Record
			if _, err := encodeParked(&r, s.parking, string(positionKey(positions[i])), ps[i].Lane, &ps[i]); err != nil {
				s.leave(ps, positions)
				return fail("park", s.sub.Topic, err)
			}
			records, tokens = append(records, r), append(tokens, ps[i].Token)
		}
		records, err = s.store(ctx, tokens, records)
		if err == nil {
			return s.parked(ps, positions, records)
		}
		s.leave(ps, positions)
		if !errors.Is(err, bus.ErrStale) { // which went, is seen the next time
			return err
		}
	}
}

// store writes records of parked messages, and in a transaction settles them at their origin.
func (s *source) store(ctx context.Context, tokens []bus.Token, records []kgo.Record) ([]kgo.Record, error) {
	if !s.sub.Transactional || len(records) == 0 {
		return s.write(ctx, records)
	}
	return records, s.transact(ctx, tokens, []*writes{{topic: s.parking, records: records, size: sizeOf(records)}})
}

// places gives each message its position in its lane; 0 if its token is stale.
func (s *source) places(ps []bus.Parking) ([]int64, error) {
	positions := make([]int64, len(ps))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fail("park", s.sub.Topic, bus.ErrClosed)
	}
	for i := range ps {
		t := ps[i].Token
		l := s.owned(t)
		if l == nil {
			continue
		}
		positions[i] = t.Position
		if !t.Parked {
			positions[i] = l.parking.position()
		}
		l.parking.put(positions[i], onTheWay) // so that nobody takes the record for somebody else's
	}
	return positions, nil
}

// leave forgets places that were not taken, as far as is known: the next try takes others.
func (s *source) leave(ps []bus.Parking, positions []int64) {
	s.mu.Lock()
	for i := range ps {
		l := s.owned(ps[i].Token)
		switch {
		case l == nil || ps[i].Token.Parked:
		case s.sub.Transactional: // nothing was written, or nobody knows
			delete(l.parking.offsets, positions[i])
		default:
			l.parking.remove(positions[i])
		}
	}
	s.mu.Unlock()
	s.wakeCommitter()
}

// parked settles at their origin what has been stored.
func (s *source) parked(ps []bus.Parking, positions []int64, records []kgo.Record) error {
	s.mu.Lock()
	stored := 0
	for i := range ps {
		if positions[i] == 0 {
			continue
		}
		r := &records[0]
		records = records[1:]
		t := &ps[i].Token
		l := s.owned(*t)
		if l == nil {
			continue // the lane's next owner has it, or deletes it
		}
		l.parking.wrote(r)
		if !t.Parked {
			l.window.Done(t.Position)
		}
		t.Parked, t.Position = true, positions[i]
		stored++
	}
	s.mu.Unlock()
	s.wakeCommitter()
	if stored < len(ps) {
		return fail("park", s.sub.Topic, fmt.Errorf("%d of %d: %w", len(ps)-stored, len(ps), bus.ErrStale))
	}
	return nil
}

// forget drops parked messages from the index whose records were removed by the transaction that settled them.
func (s *source) forget(tokens []bus.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range tokens {
		if l := s.owned(t); l != nil && t.Parked {
			delete(l.parking.offsets, t.Position)
		}
	}
}

// fetchBytes is how much one read of parked messages asks for; a larger batch comes alone.
const fetchBytes = 512 << 10

// Fetch implements bus.ParkingSource.
func (s *source) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, fail("fetch", s.sub.Topic, bus.ErrClosed)
	}
	offsets := make([]int64, len(tokens)) // -1: there is none
	byLane := map[int32][]int64{}
	for i, t := range tokens {
		offsets[i] = onTheWay
		if l := s.owned(t); l != nil && t.Parked {
			if offset, ok := l.parking.offsets[t.Position]; ok && offset != onTheWay {
				offsets[i] = offset
				byLane[t.Lane] = append(byLane[t.Lane], offset)
			}
		}
	}
	s.mu.Unlock()
	records := map[int32]map[int64]*kgo.Record{}
	for lane, offsets := range byLane {
		slices.Sort(offsets)
		found, err := s.readable(lane).at(ctx, offsets)
		if err != nil {
			return 0, fail("fetch", s.sub.Topic, err)
		}
		records[lane] = found
	}
	n := 0
	for i, t := range tokens {
		r := records[t.Lane][offsets[i]]
		if r == nil || string(r.Key) != string(positionKey(t.Position)) {
			continue
		}
		d, ok, err := decodeParked(r, &s.sub, t)
		if err != nil {
			return 0, fail("fetch", s.sub.Topic, err)
		}
		if ok {
			dst[n] = d
			n++
		}
	}
	return n, nil
}

// readable is a lane's parking log, kept because it knows the leader.
func (s *source) readable(lane int32) *partitionLog {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.fetchLogs[lane]
	if log == nil {
		log = s.partition(lane)
		log.bytes = fetchBytes
		s.fetchLogs[lane] = log
	}
	return log
}

// removeSettled deletes the records of parked messages that were settled. Called with the turn to commit.
func (s *source) removeSettled(ctx context.Context) error {
	type removed struct {
		lane *lane
		n    int
	}
	var records []kgo.Record
	var lanes []removed
	s.mu.Lock()
	for _, l := range s.lanes {
		if n := len(l.parking.settled); n > 0 {
			lanes = append(lanes, removed{l, n})
			for _, position := range l.parking.settled {
				records = append(records, removal(s.parking, l.ID, positionKey(position)))
			}
		}
	}
	s.mu.Unlock()
	records, err := s.write(ctx, records)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range lanes {
		for i := range records[:r.n] {
			r.lane.parking.wrote(&records[i])
		}
		records = records[r.n:]
		r.lane.parking.settled = r.lane.parking.settled[r.n:]
		r.lane.removed = true
	}
	return nil
}
