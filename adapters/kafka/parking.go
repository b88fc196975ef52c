package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// owned is the lane of a token, or nil if the token is stale. Called with the lock held.
func (s *source) owned(t bus.Token) *lane {
	if l := s.lanes[t.Lane]; l != nil && l.Epoch == t.Epoch {
		return l
	}
	return nil
}

// parkee is one delivery that is being parked.
type parkee struct {
	*driver.Parking
	position int64  // where it goes
	outcome  *error // of Park, for this one
}

// Park implements driver.ParkingSource.
func (s *source) Park(ctx context.Context, ps []driver.Parking) error {
	outcomes := make([]error, len(ps))
	batch := make([]parkee, len(ps))
	for i := range ps {
		batch[i] = parkee{Parking: &ps[i], outcome: &outcomes[i]}
	}
	batch, err := s.places(batch)
	if err != nil {
		return err
	}
	if s.sub.Transactional {
		s.parkWithin(ctx, batch)
	} else {
		records, errs := s.write(ctx, s.recordsOf(&batch))
		s.parked(batch, records, errs)
	}
	s.wakeCommitter()
	return s.fates(outcomes)
}

var errStalePark = fmt.Errorf("park: %w", bus.ErrStale)

// places gives each message its position in its lane. It returns the messages without a stale
// token.
func (s *source) places(batch []parkee) ([]parkee, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fail("park", s.sub.Topic, bus.ErrClosed)
	}
	owned := batch[:0:0]
	for _, p := range batch {
		l := s.owned(p.Token)
		if l == nil || l.void {
			*p.outcome = errStalePark
			continue
		}
		p.position = l.parking.Reserve(p.Token) // so that our own record is recognised
		owned = append(owned, p)
	}
	return owned, nil
}

// recordsOf makes the records of messages. It refuses messages that cannot become records, and
// leaves them out of the batch.
func (s *source) recordsOf(batch *[]parkee) []kgo.Record {
	records := make([]kgo.Record, 0, len(*batch))
	able := (*batch)[:0:0]
	for _, p := range *batch {
		var r kgo.Record
		if err := encodeParked(&r, s.parking, string(positionKey(p.position)), p.Token.Lane, p.Parking, ownerName(p.Token.Epoch)); err != nil {
			s.refuse(p, err)
			continue
		}
		records, able = append(records, r), append(able, p)
	}
	*batch = able
	return records
}

// parkWithin parks in a transaction, which also settles at the origin. If single ones are too
// large, they are looked for, so that the others are parked without them.
func (s *source) parkWithin(ctx context.Context, batch []parkee) {
	for roomy := false; ; {
		records := s.recordsOf(&batch)
		if len(batch) == 0 {
			return
		}
		tokens := make([]bus.Token, len(batch))
		largest := 0
		for i, p := range batch {
			tokens[i] = p.Token
			largest = max(largest, recordSize(&records[i])+batchOverhead)
		}
		err := s.transact(ctx, tokens, []*writes{{topic: s.parking, records: records, size: sizeOf(records)}})
		switch {
		case err == nil:
			s.parked(batch, records, nil)
			return
		case errors.Is(err, bus.ErrStale): // which, is seen now
			if batch, err = s.places(batch); err != nil {
				return // everybody is told when Close begins
			}
		case !isTooLarge(err):
			s.parked(batch, records, driver.FailAll(len(batch), storeFailure("park", s.parking, err, false)).Errs)
			return
		case !roomy && s.driver.makeRoom(ctx, s.parking, largest) == nil:
			roomy = true
		case len(batch) == 1 && errors.Is(err, errBatchTooLarge): // the next answer is about the message itself
		case len(batch) == 1:
			s.refuse(batch[0], err)
			return
		default:
			half := len(batch) / 2
			s.parkWithin(ctx, batch[:half])
			batch = batch[half:]
		}
	}
}

// refuse is the outcome of a message that can never be parked.
func (s *source) refuse(p parkee, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*p.outcome = storeFailure("park", s.parking, err, true)
	if l := s.owned(p.Token); l != nil && !p.Token.Parked {
		l.parking.finish(p.Token)
	}
}

// parked settles stored messages at their origin, and gives them their new tokens.
func (s *source) parked(batch []parkee, records []kgo.Record, errs []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range batch {
		l := s.owned(p.Token)
		switch {
		case errs != nil && errs[i] != nil:
			*p.outcome = errs[i]
			if l != nil && !bus.IsDefinite(errs[i]) {
				l.parking.Doubt(p.Token)
			}
			continue
		case l == nil: // the lane's next owner has it, or adopts it
			*p.outcome = errStalePark
			continue
		}
		l.parking.wrote(&records[i])
		if !p.Token.Parked {
			l.window.Done(p.Token.Position)
			l.parking.Moved(p.Token)
		}
		p.Token.Parked, p.Token.Position = true, p.position
	}
}

// fates makes Park's error from its messages' outcomes.
func (s *source) fates(outcomes []error) error {
	var first error
	stale, single := 0, false
	for _, err := range outcomes {
		switch {
		case errors.Is(err, bus.ErrStale):
			stale++
		case err == nil || !bus.IsRetryable(err) && !errors.Is(err, bus.ErrClosed):
			single = true
		}
		if err != nil && !errors.Is(err, bus.ErrStale) && first == nil {
			first = err
		}
	}
	switch {
	case first != nil && single:
		for i, err := range outcomes {
			if errors.Is(err, bus.ErrStale) { // the next call says so
				outcomes[i] = storeFailure("park", s.sub.Topic, errors.New("the lane has another owner"), true)
			}
		}
		return &bus.PublishError{Errs: outcomes}
	case first != nil: // all the same
		return first
	case stale > 0:
		return fail("park", s.sub.Topic, fmt.Errorf("%d of %d: %w", stale, len(outcomes), bus.ErrStale))
	}
	return nil
}

// forget notes the settlements of a transaction, which has removed the records of parked messages.
func (s *source) forget(tokens []bus.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range tokens {
		switch l := s.owned(t); {
		case l == nil:
		case t.Parked:
			l.parking.Forget(t.Position)
		default:
			l.parking.finish(t)
		}
	}
}
