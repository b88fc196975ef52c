package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/internal/backoff"
)

// wakeCommitter says that there is something to commit.
func (s *source) wakeCommitter() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// committer commits settlements, a commit interval after the first one that is not committed.
func (s *source) committer() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	b := backoff.Backoff{}
	var failing time.Time // since when commits fail; zero: they do not
	for {
		select {
		case <-s.dirty:
		case <-s.ctx.Done():
			return
		}
		wait := s.driver.config.CommitInterval
		for {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-s.ctx.Done():
				return
			}
			// Close does not cancel it: a cancelled request may reach the broker after its
			// successor.
			ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
			err := s.commitPositions(ctx)
			cancel()
			s.wakeRemover()
			if err == nil {
				if b != (backoff.Backoff{}) {
					b, failing = backoff.Backoff{}, time.Time{}
					s.wrong(notCommitted, nil)
				}
				break
			}
			if s.ctx.Err() != nil {
				return
			}
			if failing.IsZero() {
				failing = time.Now()
			}
			if time.Since(failing) >= silence(err) {
				s.wrong(notCommitted, err)
			}
			wait = max(b.Next(), s.driver.config.CommitInterval)
		}
	}
}

// silence is how long commits may fail with an error before the source tells of it. While a group
// rebalances, failures are in order.
func silence(err error) time.Duration {
	switch {
	case errors.Is(err, kerr.RebalanceInProgress), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.UnknownMemberID):
		return rebalanceTimeout
	}
	return 0
}

// Commit implements driver.Committer.
func (s *source) Commit(ctx context.Context) error {
	if err := s.commitOnce(ctx); err != nil {
		return fail("settle", s.sub.Topic, err)
	}
	return nil
}

// commitAll commits until everything is, or ctx ends.
func (s *source) commitAll(ctx context.Context) error {
	for b := (backoff.Backoff{}); ; {
		err := s.commitOnce(ctx)
		if err == nil || isMissing(err) {
			return err
		}
		if !b.Wait(ctx) {
			return err
		}
	}
}

// commitOnce makes the settlements durable.
func (s *source) commitOnce(ctx context.Context) error {
	if err := s.commitPositions(ctx); err != nil {
		return err
	}
	return s.removeSettled(ctx)
}

// commitPositions commits all lanes with new settlements in one request. It holds commitLock, so that
// an older commit never overtakes a newer one.
func (s *source) commitPositions(ctx context.Context) error {
	select {
	case <-s.commitLock:
		defer func() { s.commitLock <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	as := s.membership()
	s.mu.Lock()
	var commits []commit
	tail, topicID := s.tail(""), s.topicID
	for _, l := range s.lanes {
		if l.dirty() {
			commits = append(commits, l.commit(s.room, tail))
		}
	}
	s.mu.Unlock()
	if len(commits) == 0 {
		return nil
	}
	return s.send(ctx, as, topicID, commits)
}

// tail returns the end of the commits' metadata. Called with the lock held.
func (s *source) tail(mark string) string {
	if s.room == 0 {
		return incarnation("").tail(mark)
	}
	return s.driver.topics.incarnation(s.topicID).tail(mark)
}

// member identifies a source to its group. The broker refuses the commits of an unknown member or
// of an earlier generation.
type member struct {
	id         string
	generation int32
}

// membership must be read before the lanes for which it is to vouch: the client reports lanes lost before it has a new generation. Read after
// them, a new generation would vouch for a lane that was lost in between, and that another member may have had.
func (s *source) membership() member {
	id, generation := s.client.GroupMetadata()
	return member{id, generation}
}

// send makes the request and notes its outcome. It is not the client's own commit, because that one waits while the member joins: as long as
// the slowest member takes, although the broker accepts commits of the generation that ends.
func (s *source) send(ctx context.Context, as member, topicID [16]byte, commits []commit) error {
	if as.id == "" {
		return kerr.UnknownMemberID // a commit without a member would not be fenced
	}
	byPartition := make(map[int32]*commit, len(commits))
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.MemberID, req.Generation, req.InstanceID = s.sub.Group, as.id, as.generation, s.instance()
	topic := kmsg.NewOffsetCommitRequestTopic()
	topic.Topic, topic.TopicID = s.sub.Topic, topicID
	for i := range commits {
		c := &commits[i]
		byPartition[c.lane.ID] = c
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = c.lane.ID, c.position, c.epoch, &c.metadata
		topic.Partitions = append(topic.Partitions, p)
	}
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, s.client)
	if err != nil {
		return err
	}
	return s.noted(resp, byPartition)
}

// noted remembers the positions that are committed now.
func (s *source) noted(resp *kmsg.OffsetCommitResponse, commits map[int32]*commit) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			err := kerr.ErrorForCode(p.ErrorCode)
			if err == nil {
				c := commits[p.Partition]
				c.lane.committed, c.lane.version = c.position, c.version
				c.lane.parking.approve(c.settled)
				continue
			}
			if errors.Is(err, kerr.OffsetMetadataTooLarge) {
				s.room = 0 // this broker keeps less than the default: the position must do
			}
			errs = append(errs, fmt.Errorf("partition %d: %w", p.Partition, err))
		}
	}
	return errors.Join(errs...)
}
