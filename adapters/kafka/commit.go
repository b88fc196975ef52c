package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// wakeCommitter says that there is something to commit.
func (s *source) wakeCommitter() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// committer commits what was settled, a commit interval after the first settlement that is not committed.
func (s *source) committer() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	b := backoff{}
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
			// Close does not cancel it: a cancelled request may reach the broker after the one that follows it.
			ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
			err := s.commitOnce(ctx)
			cancel()
			if err == nil {
				b = backoff{}
				break
			}
			if s.ctx.Err() != nil {
				return
			}
			wait = max(b.delay(), s.driver.config.CommitInterval)
		}
	}
}

// Commit implements bus.Committer.
func (s *source) Commit(ctx context.Context) error {
	if err := s.commitOnce(ctx); err != nil {
		return fail("settle", s.sub.Topic, err)
	}
	return nil
}

// commitAll commits until everything is, or ctx ends.
func (s *source) commitAll(ctx context.Context) error {
	for b := (backoff{}); ; {
		err := s.commitOnce(ctx)
		if err == nil || isMissing(err) {
			return err
		}
		if b.wait(ctx) != nil {
			return err
		}
	}
}

// commitOnce commits, in one request, all lanes of which something was settled. It holds the turn, so that a commit is
// never overtaken by an older one.
func (s *source) commitOnce(ctx context.Context) error {
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.removeSettled(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	var commits []commit
	for _, l := range s.lanes {
		if l.dirty() {
			commits = append(commits, l.commit(s.room))
		}
	}
	s.stopCommit = cancel // a lane may be lost, and be another member's, before the request is sent
	s.mu.Unlock()
	if len(commits) == 0 {
		return nil
	}
	err := s.send(ctx, commits)
	s.mu.Lock()
	s.stopCommit = nil
	s.mu.Unlock()
	return err
}

// send makes the request and notes its outcome.
func (s *source) send(ctx context.Context, commits []commit) error {
	byPartition := make(map[int32]*commit, len(commits))
	offsets := make(map[int32]kgo.EpochOffset, len(commits))
	for i := range commits {
		c := &commits[i]
		byPartition[c.lane.ID] = c
		offsets[c.lane.ID] = kgo.EpochOffset{Epoch: c.epoch, Offset: c.position}
	}
	withMetadata := kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for i := range req.Topics {
			for j := range req.Topics[i].Partitions {
				p := &req.Topics[i].Partitions[j]
				p.Metadata = &byPartition[p.Partition].metadata
			}
		}
		return ctx.Err()
	})
	var failed error
	s.client.CommitOffsetsSync(withMetadata, map[string]map[int32]kgo.EpochOffset{s.sub.Topic: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
			if err != nil {
				failed = err
				return
			}
			failed = s.noted(resp, byPartition)
		})
	return failed
}

// noted remembers what is committed now.
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
				c.lane.removed = false
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
