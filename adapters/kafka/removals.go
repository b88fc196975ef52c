package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/internal/backoff"
)

// Records of settled parked messages are deleted after a commit has succeeded: its success shows
// that the lane is still ours. Commits do not wait for deletions. A record that cannot be deleted
// now, because its partition has no leader, say, is deleted later.

// isSettled says whether messages were settled after the last commit that succeeded.
func (p *parkingLog) isSettled() bool { return p.dropped+len(p.settled) > p.approved }

// approve notes that a commit succeeded which was made after so many messages were settled.
func (p *parkingLog) approve(settled int) { p.approved = max(p.approved, settled) }

func (s *source) wakeRemover() {
	select {
	case s.gone <- struct{}{}:
	default:
	}
}

// remover deletes the records of settled messages.
func (s *source) remover() {
	for b := (backoff.Backoff{}); ; {
		select {
		case <-s.gone:
		case <-s.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, commitTimeout)
		err := s.removeSettled(ctx)
		cancel()
		s.wrong(notDeleted, err)
		if err == nil {
			b = backoff.Backoff{}
			continue
		}
		if !b.Wait(s.ctx) {
			return
		}
		s.wakeRemover()
	}
}

// removeSettled deletes the records of parked messages that were settled before the last commit.
func (s *source) removeSettled(ctx context.Context) error {
	select {
	case <-s.tidy:
		defer func() { s.tidy <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var records []kgo.Record
	var of []*lane
	s.mu.Lock()
	for _, l := range s.lanes {
		for _, position := range l.parking.settled[:min(l.parking.approved-l.parking.dropped, len(l.parking.settled))] {
			records, of = append(records, removal(s.parking, l.ID, positionKey(position))), append(of, l)
		}
	}
	s.mu.Unlock()
	records, errs := s.write(ctx, records)
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := map[*lane][]int64{}
	tried := map[*lane]int{}
	for i := range records {
		l := of[i]
		tried[l]++
		position, _ := positionOf(records[i].Key)
		if errs == nil || errs[i] == nil {
			l.parking.wrote(&records[i])
			l.parking.Forget(position)
			continue
		}
		kept[l] = append(kept[l], position)
	}
	for l, n := range tried {
		l.parking.settled = append(kept[l], l.parking.settled[n:]...)
		l.parking.dropped += n - len(kept[l])
	}
	return firstError(errs)
}
