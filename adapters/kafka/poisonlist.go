package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// place is where an entry was seen: its order is by the first time.
type place struct {
	first, last int64
	replaced    *bus.PoisonEntry // the newest, if it is not the first
}

// list yields the entries in the order of their first record. It returns nil after yield has returned false.
func (s *poisonStore) list(ctx context.Context, yield func(bus.PoisonEntry, error) bool) error {
	if s.driver.isClosed() {
		return bus.ErrClosed
	}
	start, end, err := s.extent(ctx)
	if err != nil || start == end {
		return err
	}
	places := map[string]place{}
	err = s.log().each(ctx, start, end, func(r *kgo.Record) (bool, error) {
		id := string(r.Key)
		if r.Value == nil {
			delete(places, id)
			return true, nil
		}
		was, again := places[id]
		if !again {
			places[id] = place{first: r.Offset, last: r.Offset}
			return true, nil
		}
		e, ok, err := decodeEntry(r)
		if err == nil && ok {
			places[id] = place{first: was.first, last: r.Offset, replaced: &e}
		}
		return err == nil, err
	})
	if err != nil || len(places) == 0 {
		return err
	}
	return s.log().each(ctx, start, end, func(r *kgo.Record) (bool, error) {
		p, ok := places[string(r.Key)]
		if !ok || p.first != r.Offset {
			return true, nil
		}
		if p.replaced != nil {
			return yield(*p.replaced, nil), nil
		}
		e, ok, err := decodeEntry(r)
		if err != nil || !ok {
			return err == nil, err
		}
		return yield(e, nil), nil
	})
}

// extent is where the store begins and ends now; nothing, if it was never written.
func (s *poisonStore) extent(ctx context.Context) (start, end int64, err error) {
	starts, err := s.driver.adm.ListStartOffsets(ctx, s.topic)
	if err != nil {
		return 0, 0, err
	}
	ends, err := s.driver.adm.ListEndOffsets(ctx, s.topic)
	if err != nil {
		return 0, 0, err
	}
	from, _ := starts.Lookup(s.topic, 0)
	to, _ := ends.Lookup(s.topic, 0)
	if err := errors.Join(starts.Error(), ends.Error()); err != nil {
		if errors.Is(err, kerr.UnknownTopicOrPartition) {
			return 0, 0, nil
		}
		return 0, 0, err
	}
	return from.Offset, to.Offset, nil
}

func (s *poisonStore) log() *partitionLog { return &partitionLog{driver: s.driver, topic: s.topic} }
