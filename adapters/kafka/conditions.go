package kafka

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/condition"
)

// What does not work, as the observer is told.
const (
	notAMember   = "this process is not a member of the group"
	topicMissing = "the topic cannot be found"
	notCommitted = "settlements cannot be committed"
	notDeleted   = "parked messages that were settled cannot be deleted"
)

func notRead(partition int32) string { return fmt.Sprintf("partition %d cannot be read", partition) }

func notBegun(partition int32) string { return fmt.Sprintf("partition %d cannot begin yet", partition) }

func notHeard(partition int32) string {
	return fmt.Sprintf("replays and other commands for partition %d wait", partition)
}

const (
	// pingInterval is how often a source looks whether the brokers answer.
	pingInterval = time.Second
	// pingTimeout bounds one look.
	pingTimeout = 2 * time.Second
	// quietFor is how long no broker may have answered until the source asks one. A member's
	// heartbeats bring answers more often.
	quietFor = 1500 * time.Millisecond
	// readAgainAfter is when a partition counts as readable again that has failed: the client
	// repeats an error more often while it lasts.
	readAgainAfter = 5 * time.Second
)

// wrong tells the observer that something does not work, or with a nil err that it does again. If
// the brokers cannot be reached, it tells that instead.
func (s *source) wrong(what string, err error) {
	if err == nil {
		s.conditions.Report(what, "", nil)
		return
	}
	if s.ctx.Err() != nil {
		return
	}
	told := what
	if _, said := judge(err); !said && condition.Unreachable(err) {
		told = driver.Disconnected
	}
	s.conditions.Report(what, told, &bus.Error{Op: "receive", Broker: "kafka", Topic: s.sub.Topic, Err: translate(err), Retryable: retryable(err)})
}

// event leaves an error for Receive that tells of something that has happened and does not last.
func (s *source) event(op string, err error) {
	s.tell(&bus.Error{Op: op, Broker: "kafka", Topic: s.sub.Topic, Err: translate(err)})
}

// pulse is when a broker has last answered. It is a hook of the source's client.
type pulse struct{ at atomic.Int64 }

// OnBrokerRead implements kgo.HookBrokerRead.
func (p *pulse) OnBrokerRead(_ kgo.BrokerMetadata, _ int16, _ int, _, _ time.Duration, err error) {
	if err == nil {
		p.at.Store(time.Now().UnixNano())
	}
}

// quiet says whether no broker has answered for a while.
func (p *pulse) quiet() bool { return time.Since(time.Unix(0, p.at.Load())) > quietFor }

// pinger looks whether the brokers answer, and ends the conditions that no answer ends.
func (s *source) pinger() {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		}
		var err error
		if s.pulse.quiet() {
			ctx, cancel := context.WithTimeout(s.ctx, pingTimeout)
			err = s.client.Ping(ctx)
			cancel()
		}
		s.wrong(driver.Disconnected, err)
		s.rejoined()
		s.readAgain()
	}
}

// outOfGroup notes that the group has let this member go, for a reason of the broker's.
func (s *source) outOfGroup(err error) {
	if _, said := judge(err); !said {
		return // the connection's, which the pinger sees
	}
	_, generation := s.client.GroupMetadata()
	s.formerGeneration.Store(generation)
	s.wrong(notAMember, err)
}

// rejoined looks whether a member that was let go is one again.
func (s *source) rejoined() {
	former := s.formerGeneration.Load()
	if former == 0 {
		return
	}
	if _, generation := s.client.GroupMetadata(); generation > 0 && generation != former {
		s.formerGeneration.Store(0)
		s.wrong(notAMember, nil)
	}
}

// unreadable notes a partition's error. Called with the lock held.
func (s *source) unreadable(partition int32, err error) {
	s.failing[partition] = time.Now()
	s.wrong(notRead(partition), err)
}

// readAgain ends the conditions of partitions that have not failed for a while.
func (s *source) readAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, last := range s.failing {
		if time.Since(last) > readAgainAfter {
			delete(s.failing, p)
			s.wrong(notRead(p), nil)
		}
	}
}
