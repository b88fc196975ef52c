package kafka

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// watchInterval is how often a source looks after lanes that bring no records.
var watchInterval = 5 * time.Second

// growthPatience is for how long the client looks again at a topic that has more partitions: the broker that it asks may know of them late.
const growthPatience = 20 * time.Second

// watcher sees events that no poll brings: the topic was deleted, was created anew, or has more
// partitions. It also sees that a partition's rest holds no records, only remains of compaction or
// transactions. Then the position may go to the end.
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
		ctx, cancel := context.WithTimeout(s.ctx, watchInterval)
		s.look(ctx, still)
		cancel()
	}
}

// waiting returns the lanes without queued records, and the offsets that they wait for. While
// nobody receives, no lane waits: the records would be read only to be thrown away.
func (s *source) waiting() map[int32]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.polling {
		return nil
	}
	lanes := make(map[int32]int64, len(s.lanes))
	for p, l := range s.lanes {
		if !l.leaving {
			lanes[p] = l.next
		}
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
	s.tellNow(err)
}

// tellNow is tell with the lock held.
func (s *source) tellNow(err error) {
	s.report(err)
	if s.polling {
		s.stopPoll()
	}
}

// look asks the brokers about the topic, and about lanes that have been quiet.
func (s *source) look(ctx context.Context, quiet map[int32]int64) {
	topic, err := s.driver.topics.find(ctx, s.sub.Topic)
	if err != nil && (isMissing(err) || len(topic.Partitions) == 0) {
		s.wrong(topicMissing, err)
		return
	}
	s.wrong(topicMissing, nil)
	if s.isReplaced(topic.TopicID) {
		s.beginAgain(topic.TopicID)
		s.event("receive", errMadeAgain)
		return
	}
	if n := len(topic.Partitions); n > s.partitions {
		s.partitions, s.grown = n, time.Now()
	}
	if time.Since(s.grown) < growthPatience {
		s.client.ForceMetadataRefresh() // the group's leader sees them, and shares them out
	}
	if len(quiet) == 0 {
		return
	}
	ends, err := s.driver.adm.ListCommittedOffsets(ctx, s.sub.Topic)
	if err != nil {
		return // the same brokers answer the next look
	}
	for p, next := range quiet {
		if end, ok := ends.Lookup(s.sub.Topic, p); ok && end.Err == nil && end.Offset > next {
			s.skipGap(ctx, p, next)
		}
	}
}

// isReplaced says whether the topic with this id is another topic than the source's. Upgraded
// brokers give ids to topics that had none: such a topic is the same.
func (s *source) isReplaced(id [16]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	none := [16]byte{}
	if s.topicID == none {
		s.topicID = id
	}
	return id != none && s.topicID != id
}

// beginAgain reads a topic that was created anew. The lanes are lost first: their settlements are
// the old topic's, and must not be committed to the new topic.
func (s *source) beginAgain(id [16]byte) {
	s.telling.Lock()
	s.mu.Lock()
	s.start, s.topicID = start{}, id
	var gone []*lane
	for _, l := range s.lanes {
		if !l.leaving { // else it is being handed over, and the broker refuses its commit, or the next owner does
			gone = append(gone, l)
		}
	}
	for _, l := range gone {
		s.drop(l)
	}
	coming := slices.Collect(maps.Keys(s.coming))
	closed := s.closed
	s.mu.Unlock()
	if len(gone) > 0 && !closed {
		s.observer.Lost(ids(gone), errMadeAgain)
	}
	s.telling.Unlock()
	s.unexpect(coming)
	s.client.PurgeTopicsFromConsuming(s.sub.Topic)
	s.client.AddConsumeTopics(s.sub.Topic)
}

// skipGap advances a lane over a stretch that holds no records. It relies on facts read from the
// log itself, so it is right whatever the client does meanwhile.
func (s *source) skipGap(ctx context.Context, partition int32, from int64) {
	log := partitionLog{driver: s.driver, topic: s.sub.Topic, partition: partition}
	records, next, err := log.read(ctx, from)
	deleted := errors.Is(err, kerr.OffsetOutOfRange)
	if deleted {
		e, err := log.extent(ctx)
		if err != nil {
			return
		}
		next = e.start
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
		s.tellNow(s.truncated(partition, from, next))
	}
	s.wakeCommitter()
}
