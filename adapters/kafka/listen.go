package kafka

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// listenInterval is how often a source looks for what others have written into the parking logs of its lanes.
const listenInterval = time.Second

// listener hears commands: what others have parked, changed or withdrawn. The ends of the logs say whether there are any.
func (s *source) listener() {
	o, ok := s.observer.(bus.ParkingObserver)
	if !ok {
		return
	}
	ticker := time.NewTicker(listenInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		}
		if err := s.listen(o); err != nil && s.ctx.Err() == nil {
			s.tell(fail("receive", s.sub.Topic, err))
		}
	}
}

func (s *source) listen(o bus.ParkingObserver) error {
	s.mu.Lock()
	owners := len(s.lanes)
	s.mu.Unlock()
	if owners == 0 {
		return nil
	}
	ends, err := s.driver.adm.ListEndOffsets(s.ctx, s.parking)
	if err != nil {
		return nil //nolint:nilerr // the broker is not to be reached: the client is at it
	}
	for p, end := range ends[s.parking] {
		s.mu.Lock()
		l := s.lanes[p]
		news := end.Err == nil && l != nil && l.parking.ready && l.parking.heard < end.Offset
		s.mu.Unlock()
		if !news {
			continue
		}
		if err := s.hear(o, l, end.Offset); err != nil {
			return err
		}
	}
	return nil
}

// hear reads what was written into a lane's parking log, up to an offset.
func (s *source) hear(o bus.ParkingObserver, l *lane, end int64) error {
	var commands []int64
	s.mu.Lock()
	heard := l.parking.heard
	s.mu.Unlock()
	err := s.partition(l.ID).each(s.ctx, heard, end, func(r *kgo.Record) (bool, error) {
		position, isMessage := positionOf(r.Key)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !isMessage && r.Value != nil {
			commands = append(commands, r.Offset)
		}
		if !isMessage || r.Value == nil {
			return true, nil
		}
		// A message that we do not know is of an owner before us, which wrote it when it was the owner no more, and did not
		// commit it: it comes to us from where it was.
		if _, known := l.parking.offsets[position]; !known {
			l.parking.settled = append(l.parking.settled, position)
		} else if l.parking.offsets[position] != onTheWay {
			l.parking.put(position, r.Offset)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	told, err := s.carryOut(s.ctx, l, commands)
	if err != nil {
		return err
	}
	s.telling.Lock()
	defer s.telling.Unlock()
	s.mu.Lock()
	l.parking.heard = max(l.parking.heard, end)
	ours := s.lanes[l.ID] == l && !l.leaving
	s.mu.Unlock()
	if ours && len(told) > 0 {
		o.Parked(told)
	}
	s.wakeCommitter()
	return nil
}

// hush returns when the observer is not being told of lanes that are leaving.
func (s *source) hush() {
	s.telling.Lock()
	defer s.telling.Unlock()
}
