package kafka

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
)

const (
	// firstPatience is how long a lane that cannot be read holds up the lanes that are assigned with it.
	firstPatience = 2 * time.Second
	// laterPatience is how long each later try waits, when the lane holds up nobody.
	laterPatience = 10 * time.Second
)

// arrival is a lane that is about to be ours, with its parked messages. err says why the lane
// cannot begin yet.
type arrival struct {
	*lane
	parked []driver.Parked
	err    error
}

// arrive makes lanes ours as soon as their beginning and their parked messages are known. It fills in where the client begins to fetch.
// A lane that cannot be read, because a partition has no leader, say, begins later and holds up no other one.
func (s *source) arrive(ctx context.Context, fresh []*lane, offsets map[int32]kgo.Offset) error {
	s.mu.Lock()
	for _, l := range fresh {
		s.coming[l.ID] = l
	}
	s.mu.Unlock()
	arrivals := s.prepare(ctx, fresh, firstPatience)
	if err := ctx.Err(); err != nil {
		return err
	}
	var ready []arrival
	var late []int32
	for _, a := range arrivals {
		if a.committed < 0 {
			offsets[a.ID] = kgo.NewOffset().At(a.next) // 0 if it is not known: it is set when the lane begins
		}
		if a.err == nil {
			ready = append(ready, a)
		} else {
			late = append(late, a.ID)
		}
	}
	if len(late) > 0 {
		s.client.PauseFetchPartitions(map[string][]int32{s.sub.Topic: late})
	}
	s.mu.Lock()
	for _, a := range arrivals {
		if a.err != nil && !s.closed {
			s.beginning.Go(func() { s.arriveLater(a) })
		}
	}
	s.mu.Unlock()
	s.betweenPolls(func() { s.own(ready) })
	s.wakeCommitter()
	return nil
}

// arriveLater makes a lane ours when it can be read, unless it goes before that.
func (s *source) arriveLater(a arrival) {
	begins := a.window == nil
	defer s.wrong(notBegun(a.ID), nil)
	for b := (backoff.Backoff{}); a.err != nil; {
		s.wrong(notBegun(a.ID), a.err)
		if !b.Wait(s.ctx) || !s.expects(a.lane) {
			return
		}
		a = s.prepare(s.ctx, []*lane{a.lane}, laterPatience)[0]
	}
	s.betweenPolls(func() {
		if !s.own([]arrival{a}) {
			return
		}
		if begins {
			s.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{s.sub.Topic: {a.ID: {Epoch: -1, Offset: a.next}}})
		}
		s.client.ResumeFetchPartitions(map[string][]int32{s.sub.Topic: {a.ID}})
	})
	s.wakeCommitter()
}

// expects says whether a lane is still to be ours.
func (s *source) expects(l *lane) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.coming[l.ID] == l
}

// unexpect gives up the given partitions that have not begun.
func (s *source) unexpect(partitions []int32) {
	var paused []int32
	s.mu.Lock()
	for _, p := range partitions {
		if s.coming[p] != nil {
			delete(s.coming, p)
			paused = append(paused, p)
		}
	}
	s.mu.Unlock()
	if len(paused) > 0 {
		s.client.ResumeFetchPartitions(map[string][]int32{s.sub.Topic: paused})
	}
}

// prepare reads, once, the facts that lanes need before they begin. Each lane has an outcome of its
// own. Each step takes at most patience.
func (s *source) prepare(ctx context.Context, lanes []*lane, patience time.Duration) []arrival {
	arrivals := make([]arrival, len(lanes))
	for i, l := range lanes {
		arrivals[i].lane = l
	}
	s.findBeginnings(ctx, arrivals, patience)
	s.load(ctx, arrivals, patience)
	return arrivals
}

// findBeginnings finds the oldest messages of lanes that have no position.
func (s *source) findBeginnings(ctx context.Context, arrivals []arrival, patience time.Duration) {
	var partitions []int32
	for _, a := range arrivals {
		if a.window == nil {
			partitions = append(partitions, a.ID)
		}
	}
	if len(partitions) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	topic, err := s.driver.topics.find(ctx, s.sub.Topic)
	extents := s.driver.extents(ctx, topic, partitions)
	for i := range arrivals {
		a := &arrivals[i]
		if a.window != nil {
			continue
		}
		if e, ok := extents[a.ID]; ok && e.err == nil {
			a.begin(e.start)
		} else {
			a.err = fmt.Errorf("the offset to begin at was not found: %w", cmp.Or(e.err, err, error(kerr.UnknownTopicOrPartition)))
		}
	}
}

// load reads the parked messages of lanes with a known beginning, in the order of each lane. It
// leaves the commands there to the listener.
func (s *source) load(ctx context.Context, arrivals []arrival, patience time.Duration) {
	var partitions []int32
	for _, a := range arrivals {
		if a.err == nil {
			partitions = append(partitions, a.ID)
		}
	}
	if _, parks := s.observer.(driver.ParkingObserver); !parks || len(partitions) == 0 {
		return
	}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	topic, err := s.driver.findAnywhere(asking, s.parking, int(slices.Max(partitions))+1)
	extents := s.driver.extents(asking, topic, partitions) // none of a partition that does not exist
	atOnce(len(arrivals), func(i int) {
		a := &arrivals[i]
		if a.err != nil {
			return
		}
		e := extents[a.ID]
		if a.err = cmp.Or(err, e.err); a.err == nil {
			a.parked, a.err = s.loadLane(ctx, a.lane, e, topic.TopicID, patience)
		}
		if a.err != nil {
			a.err = fmt.Errorf("the parked messages were not read: %w", a.err)
		}
	})
}
