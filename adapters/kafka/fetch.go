package kafka

import (
	"context"
	"errors"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// fetchBytes is how much one read of parked messages asks for; a larger batch comes alone.
const fetchBytes = 512 << 10

// Fetch implements driver.ParkingSource.
func (s *source) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	offsets, err := s.offsetsOf(tokens)
	if err != nil {
		return 0, fail("fetch", s.sub.Topic, err)
	}
	byLane := map[int32][]int64{}
	for i, t := range tokens {
		if offsets[i] >= 0 {
			byLane[t.Lane] = append(byLane[t.Lane], offsets[i])
		}
	}
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
		if r == nil {
			continue
		}
		if string(r.Key) != string(positionKey(t.Position)) {
			s.doubt(t)
			return 0, fail("fetch", s.sub.Topic, errAnew)
		}
		d, err := decodeParked(r, &s.sub, t)
		if err != nil {
			s.poison(ctx, t, r, err)
			continue
		}
		dst[n] = d
		n++
	}
	return n, nil
}

// offsetsOf are where the records of tokens are; onTheWay for those that are not there, or stale.
func (s *source) offsetsOf(tokens []bus.Token) ([]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, bus.ErrClosed
	}
	offsets := make([]int64, len(tokens))
	for i, t := range tokens {
		offsets[i] = onTheWay
		if l := s.owned(t); l != nil && t.Parked {
			if offset, ok := l.parking.offsets[t.Position]; ok {
				offsets[i] = offset
			}
		}
		if offsets[i] == unplaced {
			return nil, errAnew
		}
	}
	return offsets, nil
}

// doubt has a lane's parking log read anew: the index does not fit it.
func (s *source) doubt(t bus.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.owned(t); l != nil {
		l.parking.odd = true
	}
}

// poison moves a parked record that cannot be read to the group's poison queue, so that no other waits for it. If that fails, the record
// stays for the lane's next owner.
func (s *source) poison(ctx context.Context, t bus.Token, r *kgo.Record, why error) {
	e := unreadable(r, why)
	e.ID = s.parking + "/" + string(positionKey(int64(t.Lane))) + "/" + string(r.Key)
	e.Topic, e.Group, e.Position = s.sub.Topic, s.sub.Group, t.Position
	s.tell(fail("fetch", s.sub.Topic, errors.New(e.Failure.Text)))
	store, err := s.driver.Poison(ctx, s.sub.Group)
	if err == nil {
		err = store.Put(ctx, e)
	}
	if err != nil {
		s.tell(fail("fetch", s.sub.Topic, err))
		return
	}
	_ = s.Settle(ctx, []bus.Token{t}) // if it is stale, the next owner does the same
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
