package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// poll waits for records and queues them. An assignment interrupts it; nil then means: again.
// Records that the client has handed out from a partition's last ownership must be queued, and
// dropped, before the next ownership begins. (The client's BlockRebalanceOnPoll would do so, but it
// also holds up polls while a lane is drained. All other lanes would wait for as long as the
// slowest handler takes.)
//
// It takes all records that the client has. Only then does the client ask the broker for more, so
// the next fetch is under way while these records are handled.
func (s *source) poll(ctx context.Context) error {
	polling, stop := context.WithCancel(ctx)
	defer stop()
	s.mu.Lock()
	for s.assigning > 0 {
		s.change.Wait()
	}
	if s.closed {
		s.mu.Unlock()
		return fail("receive", s.sub.Topic, bus.ErrClosed)
	}
	s.polling, s.stopPoll = true, stop
	s.mu.Unlock()

	fetches := s.client.PollFetches(polling)

	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range fetches {
		for j := range fetches[i].Topics {
			t := &fetches[i].Topics[j]
			for k := range t.Partitions {
				p := &t.Partitions[k]
				if p.Err != nil {
					s.failed(p)
				}
				if !s.isForeign(t.TopicID) {
					s.enqueue(p)
				}
			}
		}
	}
	s.polling, s.stopPoll = false, nil
	s.change.Broadcast()
	return nil
}

// isForeign says whether records are of another topic of this name: the lanes' positions do not
// belong to it. The watcher will see it, too. Called with the lock held.
func (s *source) isForeign(topicID [16]byte) bool {
	none := [16]byte{}
	return topicID != s.topicID && topicID != none && s.topicID != none
}

// enqueue queues the records of a partition that this source owns. Called with the lock held.
func (s *source) enqueue(p *kgo.FetchPartition) {
	l := s.lanes[p.Partition]
	if l == nil || l.leaving {
		return
	}
	records := p.Records
	for len(records) > 0 && records[0].Offset < l.next && records[0].Attrs.IsControl() {
		records = records[1:] // the watcher has gone past it, while the client had it; if the log was cut off, a message tells
	}
	if len(records) == 0 {
		return
	}
	first, last := records[0], records[len(records)-1]
	if first.Offset < l.next { // the log ended before the group's position: cut off, or made anew
		s.report(s.lossError(p.Partition, "the partition was truncated or created anew: the group was at offset %d and goes on at %d", l.next, first.Offset))
		s.rewind(l, first.Offset)
		return
	}
	q := run{lane: l, from: l.next, records: records}
	if p.LogStartOffset > l.next {
		s.report(s.truncated(p.Partition, l.next, p.LogStartOffset))
		q.from = p.LogStartOffset
	}
	s.queue = append(s.queue, q)
	l.next = last.Offset + 1
	l.leaderEpoch = last.LeaderEpoch
}

// failed tells of a partition's error, unless it is of our own making. The client retries passing
// errors itself and does not show them. Called with the lock held.
func (s *source) failed(p *kgo.FetchPartition) {
	if p.Partition < 0 { // the poll's own end: an assignment, Close, or Receive's context
		return
	}
	if _, ok := errors.AsType[*kgo.ErrGroupSession](p.Err); ok {
		s.outOfGroup(p.Err)
		return
	}
	if _, ok := errors.AsType[*kgo.ErrDataLoss](p.Err); ok {
		s.report(s.lossError(p.Partition, "%w", p.Err))
		return
	}
	s.unreadable(p.Partition, p.Err)
}

// truncated is the report that retention was quicker than the group.
func (s *source) truncated(partition int32, from, to int64) error {
	return s.lossError(partition, "records from %d to %d were deleted by retention before the group %q read them", from, to-1, s.sub.Group)
}

// lossError tells that messages may be lost to the group. It is not retryable: it will not turn out well the next time.
func (s *source) lossError(partition int32, format string, args ...any) error {
	return &bus.Error{
		Op: "receive", Broker: "kafka", Topic: s.sub.Topic,
		Err: fmt.Errorf("partition %d: %w", partition, fmt.Errorf(format, args...)),
	}
}

// skips says whether a record is not a message for this group: a transaction's marker, or one from before the point in
// time at which the group starts.
func (l *lane) skips(r *kgo.Record) bool {
	if r.Attrs.IsControl() {
		return true
	}
	if l.since.IsZero() {
		return false
	}
	if publishedBefore(r, l.since) {
		return true
	}
	l.since = time.Time{}
	return false
}

// publishedBefore goes by the broker's time, which has milliseconds. Within the millisecond of t, it goes by the
// message's own time if that is its time of publishing.
func publishedBefore(r *kgo.Record, t time.Time) bool {
	if ms, at := r.Timestamp.UnixMilli(), t.UnixMilli(); ms != at {
		return ms < at
	}
	for i := range r.Headers {
		if r.Headers[i].Key != headerTime {
			continue
		}
		own, err := time.Parse(time.RFC3339Nano, string(r.Headers[i].Value))
		return err == nil && own.Before(t) && r.Timestamp.Sub(own) < 2*time.Millisecond
	}
	return false
}
