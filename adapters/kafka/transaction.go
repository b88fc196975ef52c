package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// commitMark ends the window in a commit's metadata. Within a transaction, the text behind it is of
// this transaction alone. So findOut can see later whether the transaction was committed.
const commitMark = "#"

// transact publishes records and settles deliveries in one transaction. After an error that is no
// refusal and not of the context, nothing of it has happened. It holds commitLock, so that no other
// commit comes between.
func (s *source) transact(ctx context.Context, tokens []bus.Token, all []*writes) error {
	select {
	case <-s.commitLock:
		defer func() { s.commitLock <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	commits, err := s.commitsWith(tokens)
	if err != nil {
		return err
	}
	client, err := s.writer.begin(s)
	if err != nil {
		return fail("settle", s.sub.Topic, err)
	}
	if err := s.produceAll(ctx, client, all); err != nil {
		s.writer.abort(s)
		return err
	}
	if err := s.commitWithin(ctx, client, commits); err != nil {
		s.writer.abort(s)
		return fail("settle", s.sub.Topic, err)
	}
	ending, end := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer end()
	before := s.writer.ends.answered.Load()
	err = client.EndTransaction(ending, kgo.TryCommit)
	if err == nil && s.writer.ends.answered.Load() == before {
		err = errNotEnded
	}
	if err != nil {
		if err := s.findOut(ctx, commits, err); err != nil {
			return fail("settle", s.sub.Topic, err)
		}
	}
	s.transacted(tokens, commits)
	return nil
}

// errNotEnded: the client has taken the transaction for empty, and has not asked the broker to end
// it. It was seen after connections broke.
var errNotEnded = errors.New("the client did not send the end of the transaction")

// ends counts the ends of transactions that the broker has answered.
type ends struct{ answered atomic.Int64 }

// OnBrokerRead implements kgo.HookBrokerRead.
func (e *ends) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if key == int16(kmsg.EndTxn) && err == nil {
		e.answered.Add(1)
	}
}

// errOwnership: a lane went while the transaction was being prepared.
var errOwnership = fmt.Errorf("while settling: %w", bus.ErrStale)

// commitsWith returns the commits of the tokens' lanes for when the tokens are done. A lane with
// tokens of parked messages only commits its former position again: the broker fences the former
// owner.
func (s *source) commitsWith(tokens []bus.Token) ([]commit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fail("settle", s.sub.Topic, bus.ErrClosed)
	}
	byLane := map[int32]*commit{}
	var order []int32
	for _, t := range tokens {
		l := s.owned(t)
		if l == nil || l.void {
			return nil, errOwnership
		}
		c := byLane[t.Lane]
		if c == nil {
			c = &commit{lane: l, window: l.window.Clone()}
			byLane[t.Lane] = c
			order = append(order, t.Lane)
		}
		if !t.Parked {
			c.window.Done(t.Position)
			c.last = max(c.last, t.Position)
		}
	}
	tail := s.tail(strconv.FormatInt(time.Now().UnixNano(), 36))
	commits := make([]commit, 0, len(order))
	for _, id := range order {
		c := byLane[id]
		c.position, c.epoch, c.version = c.window.Position(), c.lane.leaderEpoch, c.window.Version()
		c.metadata = encodeMetadata(c.window, c.position, s.room, tail)
		if c.last >= c.position && restore(c.position, c.metadata).Add(c.last) {
			return nil, fail("settle", s.sub.Topic, fmt.Errorf("partition %d: %w", id, errScattered))
		}
		commits = append(commits, *c)
	}
	return commits, nil
}

var errScattered = errors.New("too many unfinished messages lie between finished ones: the committed metadata has no room for them; settling waits for older messages to finish")

// produceAll writes all records. Its error is a refusal if it is about single ones.
func (s *source) produceAll(ctx context.Context, client *kgo.Client, all []*writes) error {
	d := s.driver
	refused := &refusal{errs: map[*writes][]error{}}
	var calls []*call
	for _, w := range all {
		if err := s.ensureFor(ctx, w); err != nil {
			refused.errs[w], refused.exact = driver.FailAll(len(w.records), publishFailure(w.topic, err, true)).Errs, true
			return refused
		}
	}
	for _, w := range all {
		if !d.buffer.TryTake(w.size) {
			if !d.buffer.Take(ctx, nil, w.size) {
				return fail("settle", s.sub.Topic, ctx.Err())
			}
		}
		calls = append(calls, d.produce(ctx, client, w.records, w.size))
	}
	for i, w := range all {
		if pe, ok := errors.AsType[*bus.PublishError](calls[i].wait(ctx, w.topic)); ok {
			refused.errs[w] = pe.Errs
			if w.topic == s.parking && slices.ContainsFunc(pe.Errs, isMissing) {
				d.forgetParking(s.parking)
			}
		}
	}
	if len(refused.errs) > 0 {
		return refused
	}
	return nil
}

// ensureFor sees to it that the topic exists.
func (s *source) ensureFor(ctx context.Context, w *writes) error {
	d := s.driver
	if w.topic == s.parking {
		return d.ensureParking(ctx, s.parking, s.sub.Topic, lastPartition(w.records))
	}
	if d.topics.has(w.topic) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.config.PublishTimeout)
	defer cancel()
	return d.topics.ensure(ctx, w.topic)
}

// commitWithin adds the group's positions to the transaction. The generation fences them: a member
// that has lost a partition without knowing is refused.
func (s *source) commitWithin(ctx context.Context, client *kgo.Client, commits []commit) error {
	id, epoch, err := client.ProducerID(ctx)
	if err != nil {
		return err
	}
	as := s.membership()
	if !s.stillOwns(commits) {
		return errOwnership
	}
	add := kmsg.NewPtrAddOffsetsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = s.writer.id, id, epoch, s.sub.Group
	added, err := add.RequestWith(ctx, client)
	if err == nil {
		err = kerr.ErrorForCode(added.ErrorCode)
	}
	if err != nil {
		return err
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group = s.writer.id, id, epoch, s.sub.Group
	req.MemberID, req.Generation, req.InstanceID = as.id, as.generation, s.instance()
	topic := kmsg.NewTxnOffsetCommitRequestTopic()
	topic.Topic = s.sub.Topic
	for i := range commits {
		c := &commits[i]
		p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = c.lane.ID, c.position, c.epoch, &c.metadata
		topic.Partitions = append(topic.Partitions, p)
	}
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				errs = append(errs, fmt.Errorf("partition %d: %w", p.Partition, err))
			}
		}
	}
	return errors.Join(errs...)
}

// stillOwns says whether the lanes have been ours since the commits were made.
func (s *source) stillOwns(commits []commit) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range commits {
		if l := commits[i].lane; s.lanes[l.ID] != l {
			return false
		}
	}
	return true
}

// findOut returns nil if a transaction was committed although its end has no answer. A new producer
// of the same id ends the transaction under way; then the group's positions tell. If ctx ends
// first, the lanes are not committed by this process any more.
func (s *source) findOut(ctx context.Context, commits []commit, cause error) error {
	s.writer.drop()
	committed := false
	err := s.insist(ctx, "the outcome of a transaction is not known: its messages may be settled or not", func() error {
		client, err := s.writer.open(s)
		if err != nil {
			return err
		}
		if _, _, err = client.ProducerID(ctx); err != nil {
			s.writer.drop()
			return err
		}
		offsets, err := s.driver.adm.FetchOffsetsForTopics(kadm.RequireStable(ctx), s.sub.Group, s.sub.Topic)
		if err == nil {
			err = offsets.Error()
		}
		if err != nil {
			return err
		}
		committed = slices.ContainsFunc(commits, func(c commit) bool { // others may have been committed anew, by the lane's next owner
			o, ok := offsets.Lookup(s.sub.Topic, c.lane.ID)
			return ok && o.At == c.position && o.Metadata == c.metadata
		})
		return nil
	})
	if err != nil {
		s.mu.Lock()
		for i := range commits {
			commits[i].lane.void = true
		}
		s.mu.Unlock()
		return errors.Join(cause, err)
	}
	if !committed {
		return cause
	}
	return nil
}

// transacted notes the committed positions. Of parked messages, the caller knows whether they were
// removed or parked again.
func (s *source) transacted(tokens []bus.Token, commits []commit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range tokens {
		if l := s.owned(t); l != nil && !t.Parked {
			l.window.Done(t.Position)
		}
	}
	for _, c := range commits {
		c.lane.committed, c.lane.version = c.position, c.version
	}
}
