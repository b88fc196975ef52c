package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/parking"
)

// fetchBytes is how much one read of parked messages asks for; a larger batch comes alone.
const fetchBytes = 512 << 10

// fetchPatience is how long a lane that gives nothing holds up the other lanes of a Fetch, the first time. From then on it is asked once at
// a time, and not before its back-off is over.
const fetchPatience = 2 * time.Second

// fetchLog is a lane's parking log for Fetch, kept because it knows the leader.
type fetchLog struct {
	*partitionLog
	backoff backoff.Backoff
	failed  error     // of the last try; nil: it succeeded
	until   time.Time // it is not tried again before
}

// wanted are the records of a lane that a Fetch asks for, and the results.
type wanted struct {
	log     *fetchLog
	offsets []int64
	found   map[int64]*kgo.Record
	err     error
}

// Fetch implements driver.ParkingSource.
func (s *source) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	offsets, err := s.offsetsOf(tokens)
	if err != nil {
		return 0, fail("fetch", s.sub.Topic, err)
	}
	lanes := map[int32]*wanted{}
	var each []*wanted
	for i, t := range tokens {
		if offsets[i] < 0 {
			continue
		}
		w := lanes[t.Lane]
		if w == nil {
			w = &wanted{log: s.readable(t.Lane)}
			lanes[t.Lane], each = w, append(each, w)
		}
		w.offsets = append(w.offsets, offsets[i])
	}
	atOnce(len(each), func(i int) { each[i].read(ctx) })
	n, errs, failed := 0, make([]error, len(tokens)), 0
	for i, t := range tokens {
		var d bus.Delivery
		switch w := lanes[t.Lane]; {
		case offsets[i] == lost:
			errs[i] = fail("fetch", s.sub.Topic, errAnew)
		case offsets[i] < 0:
			continue
		case w.err != nil:
			errs[i] = fail("fetch", s.sub.Topic, w.err)
		default:
			r := w.found[offsets[i]]
			if r == nil {
				continue
			}
			if d, errs[i] = s.bodyOf(ctx, t, r); errs[i] == nil && d.Message != nil {
				dst[n] = d
				n++
			}
		}
		if errs[i] != nil {
			failed++
		}
	}
	switch failed {
	case 0:
		return n, nil
	case len(tokens):
		return 0, errs[0]
	}
	return n, &bus.PublishError{Errs: errs}
}

// read reads the wanted records of a lane.
func (w *wanted) read(ctx context.Context) {
	l := w.log
	if l.failed != nil && time.Now().Before(l.until) {
		w.err = l.failed
		return
	}
	slices.Sort(w.offsets)
	l.once = l.failed != nil
	if w.found, w.err = l.at(ctx, w.offsets); w.err == nil {
		l.failed, l.backoff = nil, backoff.Backoff{}
	} else if ctx.Err() == nil {
		l.failed, l.until = w.err, time.Now().Add(l.backoff.Next())
	}
}

// bodyOf is the message of a parked record; none if the record cannot be read.
func (s *source) bodyOf(ctx context.Context, t bus.Token, r *kgo.Record) (bus.Delivery, error) {
	if string(r.Key) != string(positionKey(t.Position)) {
		s.doubt(t)
		return bus.Delivery{}, fail("fetch", s.sub.Topic, errAnew)
	}
	d, err := decodeParked(r, &s.sub, t)
	if err != nil {
		s.poison(ctx, t, r, err)
		return bus.Delivery{}, nil
	}
	return d, nil
}

// offsetsOf returns these for a record that is not there, and for a record that has to be found
// again.
const (
	nowhere = -1
	lost    = -2
)

// offsetsOf returns the offsets of the tokens' records; nowhere, too, for stale tokens.
func (s *source) offsetsOf(tokens []bus.Token) ([]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, bus.ErrClosed
	}
	offsets := make([]int64, len(tokens))
	for i, t := range tokens {
		offsets[i] = nowhere
		if l := s.owned(t); l != nil && t.Parked {
			switch state, offset := l.parking.At(t.Position); state {
			case parking.Stored:
				offsets[i] = offset
			case parking.Lost:
				offsets[i] = lost
			}
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
	s.event("fetch", errors.New(e.Failure.Text))
	store, err := s.driver.Poison(ctx, s.sub.Group)
	if err == nil {
		err = store.Put(ctx, e)
	}
	if err != nil {
		s.event("fetch", fmt.Errorf("a parked record that cannot be read stays where it is: %w", err))
		return
	}
	_ = s.Settle(ctx, []bus.Token{t}) // if it is stale, the next owner does the same
}

// readable is a lane's parking log.
func (s *source) readable(lane int32) *fetchLog {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.fetchLogs[lane]
	if log == nil {
		log = &fetchLog{partitionLog: s.partition(lane)}
		log.bytes, log.patience = fetchBytes, fetchPatience
		s.fetchLogs[lane] = log
	}
	return log
}
