package kafka

import (
	"cmp"
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// seen is where an entry was seen: its order is by the first time.
type seen struct {
	first    int64
	replaced *driver.PoisonEntry // the newest, if it is not the first
}

// list yields the entries in the order of their first record. It returns nil after yield has
// returned false.
func (s *poisonStore) list(ctx context.Context, yield func(driver.PoisonEntry, error) bool) error {
	if s.driver.isClosed() {
		return bus.ErrClosed
	}
	e, err := s.extent(ctx)
	if err != nil || e.start == e.end {
		return err
	}
	places := map[string]seen{}
	err = s.log().each(ctx, e.start, e.end, func(r *kgo.Record) (bool, error) {
		id := string(r.Key)
		was, again := places[id]
		switch {
		case r.Value == nil:
			delete(places, id)
		case !again:
			places[id] = seen{first: r.Offset}
		default:
			newest := s.decodeEntry(r)
			places[id] = seen{was.first, &newest}
		}
		return true, nil
	})
	if err != nil || len(places) == 0 {
		return err
	}
	more := true
	err = s.log().each(ctx, e.start, e.end, func(r *kgo.Record) (bool, error) {
		p, ok := places[string(r.Key)]
		if !ok || p.first != r.Offset {
			return true, nil
		}
		delete(places, string(r.Key))
		if p.replaced != nil {
			more = yield(*p.replaced, nil)
		} else {
			more = yield(s.decodeEntry(r), nil)
		}
		return more, nil
	})
	if err != nil || len(places) == 0 || !more {
		return err
	}
	return s.listCompacted(ctx, places, e.end, yield)
}

// listCompacted yields entries that lost their first record to compaction between the two readings,
// because there is a newer record.
func (s *poisonStore) listCompacted(ctx context.Context, places map[string]seen, from int64, yield func(driver.PoisonEntry, error) bool) error {
	e, err := s.extent(ctx)
	if err != nil {
		return err
	}
	err = s.log().each(ctx, max(from, e.start), e.end, func(r *kgo.Record) (bool, error) {
		p, ok := places[string(r.Key)]
		switch {
		case !ok:
		case r.Value == nil:
			delete(places, string(r.Key))
		default:
			newest := s.decodeEntry(r)
			places[string(r.Key)] = seen{p.first, &newest}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	var left []seen
	for _, p := range places {
		if p.replaced != nil {
			left = append(left, p)
		}
	}
	slices.SortFunc(left, func(a, b seen) int { return cmp.Compare(a.first, b.first) })
	for _, p := range left {
		if !yield(*p.replaced, nil) {
			break
		}
	}
	return nil
}

// extent returns where the store begins and ends now; nothing, if it was never written.
func (s *poisonStore) extent(ctx context.Context) (extent, error) {
	e, err := s.log().extent(ctx)
	if isMissing(err) {
		return extent{}, nil
	}
	return e, err
}

// log returns a reader of the store. A leader that stays away is an error in the end, also for a
// caller without a deadline.
func (s *poisonStore) log() *partitionLog {
	return &partitionLog{driver: s.driver, topic: s.topic, patience: s.driver.config.PublishTimeout}
}
