package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/millrace-go/millrace/bus"
)

// watchInterval is how often a source looks after lanes of which nothing comes.
var watchInterval = 5 * time.Second

// watcher sees what no poll brings: that the topic was deleted, that it was created anew, and that the rest of a
// partition is no records but what compaction or transactions have left, so that the position may go to the end.
func (s *source) watcher() {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	quiet := map[int32]int64{} // lanes' next offsets at the last look
	for {
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		}
		now := s.waiting()
		still := map[int32]int64{}
		for p, next := range now {
			if last, ok := quiet[p]; ok && last == next {
				still[p] = next
			}
		}
		quiet = now
		if len(still) == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, watchInterval)
		if err := s.look(ctx, still); err != nil && s.ctx.Err() == nil {
			s.tell(fail("receive", s.sub.Topic, err))
		}
		cancel()
	}
}

// waiting are the lanes of which nothing is queued, and the offsets that they wait for. While nobody receives, none waits: what there
// is would be read only to be thrown away.
func (s *source) waiting() map[int32]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.polling {
		return nil
	}
	lanes := make(map[int32]int64, len(s.lanes))
	for p, l := range s.lanes {
		lanes[p] = l.next
	}
	for i := range s.queue {
		delete(lanes, s.queue[i].lane.ID)
	}
	return lanes
}

// tell reports an error now, even if Receive waits for records.
func (s *source) tell(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report(err)
	if s.polling {
		s.stopPoll()
	}
}

// look asks the brokers about lanes that have been quiet.
func (s *source) look(ctx context.Context, quiet map[int32]int64) error {
	topic, err := s.driver.topics.find(ctx, s.sub.Topic)
	switch {
	case isMissing(err):
		return fmt.Errorf("%w: the topic was deleted: %w", bus.ErrNotFound, err)
	case err != nil && len(topic.Partitions) == 0:
		return nil // the broker is not to be reached: the client is at it
	case s.topicID != topic.TopicID:
		s.topicID = topic.TopicID
		return s.beginAgain()
	}
	ends, err := s.driver.adm.ListCommittedOffsets(ctx, s.sub.Topic)
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	for p, next := range quiet {
		if end, ok := ends.Lookup(s.sub.Topic, p); ok && end.Err == nil && end.Offset > next {
			s.skipGap(ctx, p, next)
		}
	}
	return nil
}

// beginAgain reads a topic that was created anew. The brokers have forgotten the group's position in the old one.
func (s *source) beginAgain() error {
	s.mu.Lock()
	s.start = start{}
	s.mu.Unlock()
	s.client.PurgeTopicsFromConsuming(s.sub.Topic)
	s.client.AddConsumeTopics(s.sub.Topic)
	return errors.New("the topic was deleted and created anew: the group reads it from its beginning")
}

// skipGap advances a lane over a stretch that holds no records. What it relies on is read from the log itself, so it
// holds whatever the client does meanwhile.
func (s *source) skipGap(ctx context.Context, partition int32, from int64) {
	log := partitionLog{driver: s.driver, topic: s.sub.Topic, partition: partition}
	records, next, err := log.read(ctx, from)
	deleted := errors.Is(err, kerr.OffsetOutOfRange)
	if deleted {
		starts, err := s.driver.adm.ListStartOffsets(ctx, s.sub.Topic)
		if err != nil {
			return
		}
		start, _ := starts.Lookup(s.sub.Topic, partition)
		next = start.Offset
	} else if err != nil || len(records) > 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lanes[partition]
	if l == nil || l.next != from || next <= from {
		return
	}
	for i := range s.queue {
		if s.queue[i].lane == l {
			return
		}
	}
	l.next = next
	l.window.Advance(next)
	if deleted {
		s.report(s.truncated(partition, from, next))
		if s.polling {
			s.stopPoll()
		}
	}
	s.wakeCommitter()
}
