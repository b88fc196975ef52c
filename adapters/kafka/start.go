package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/millrace-go/millrace/bus"
)

// start is where a new group begins: the positions of all partitions when it subscribed. It is
// committed as a whole before anything is consumed. So a partition without a position was added
// later, and begins with its oldest message.
type start struct {
	positions map[int32]int64
	since     time.Time // of a StartAt, which the positions know to the millisecond: messages from before it are skipped
	unsaved   bool      // it is not committed: the group has members, for other topics, and only these may commit
}

// start finds out where a group begins, and makes it the group's position. A group that has a
// position gets the zero start.
func (d *busDriver) start(ctx context.Context, s bus.Subscription, id [16]byte) (start, error) {
	if s.Start == bus.Earliest {
		return start{}, nil
	}
	begun, err := d.positions(ctx, s)
	if err != nil || len(begun) > 0 {
		return start{}, err
	}
	var listed kadm.ListedOffsets
	since, timed := s.Start.Time()
	if timed {
		listed, err = d.adm.ListOffsetsAfterMilli(ctx, since.UnixMilli(), s.Topic)
	} else {
		listed, err = d.adm.ListEndOffsets(ctx, s.Topic)
	}
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return start{}, fmt.Errorf("find the offset at which the group begins: %w", err)
	}
	begin := start{positions: map[int32]int64{}, since: since}
	offsets := listed.Offsets()
	for p, o := range offsets[s.Topic] {
		begin.positions[p] = o.At
		o.Metadata = d.topics.incarnation(id).tail("")
		offsets[s.Topic][p] = o
	}
	// Another member may have begun in the meantime. Its positions are older, and hold: it misses
	// nothing since it subscribed.
	begun, err = d.positions(ctx, s)
	if err != nil || len(begun) > 0 {
		maps.Copy(begin.positions, begun)
		return begin, err
	}
	responses, err := d.adm.CommitOffsets(ctx, s.Group, offsets)
	if err == nil {
		err = responses.Error()
	}
	if errors.Is(err, kerr.UnknownMemberID) {
		begin.unsaved, err = true, nil
	}
	if err != nil {
		return start{}, fmt.Errorf("commit the offset at which the group begins: %w", err)
	}
	return begin, nil
}

// positions returns a group's positions in a topic, or in an earlier topic of its name: then the
// group is not new, and misses nothing of this topic.
func (d *busDriver) positions(ctx context.Context, s bus.Subscription) (map[int32]int64, error) {
	committed, err := d.adm.FetchOffsetsForTopics(ctx, s.Group, s.Topic)
	if err == nil {
		err = committed.Error()
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("read the group's position: %w", err)
	}
	positions := map[int32]int64{}
	for p, o := range committed[s.Topic] {
		if o.At >= 0 {
			positions[p] = o.At
		}
	}
	return positions, nil
}

// saveStart commits, as a member, where the group begins, unless another member has done it. It
// tries until ctx ends.
func (s *source) saveStart(ctx context.Context) error {
	s.mu.Lock()
	begin, tail, topicID := s.start, s.tail(""), s.topicID
	s.mu.Unlock()
	if !begin.unsaved {
		return nil
	}
	return s.insist(ctx, "the offset at which the group begins could not be committed", func() error {
		ctx, cancel := context.WithTimeout(ctx, commitTimeout)
		defer cancel()
		begun, err := s.driver.positions(ctx, s.sub)
		if err != nil {
			return err
		}
		if len(begun) == 0 {
			commits := make([]commit, 0, len(begin.positions))
			for p, at := range begin.positions {
				commits = append(commits, commit{lane: &lane{Lane: bus.Lane{ID: p}}, position: at, epoch: -1, metadata: tail})
			}
			if err := s.send(ctx, s.membership(), topicID, commits); err != nil {
				return err
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.start.unsaved { // and the topic was not created anew
			s.start.unsaved = false
			maps.Copy(s.start.positions, begun)
		}
		return nil
	})
}
