package kafka

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// SettleWith implements driver.TransactionalSource.
func (s *source) SettleWith(ctx context.Context, ss []driver.Settlement) error {
	errs := make([]error, len(ss))
	for {
		tokens, err := s.settleable(ss, errs)
		if err != nil {
			return err
		}
		outputs := outputsOf(ss, errs)
		if len(outputs) == 0 {
			err = s.Settle(ctx, tokens)
		} else {
			if err = s.transact(ctx, tokens, slices.Concat(outputs, s.removals(tokens))); err == nil {
				s.forget(tokens)
			}
		}
		switch {
		case err == nil:
			return bus.PerMessage(errs)
		case errors.Is(err, bus.ErrStale): // which, is seen the next time
		case refusedOf(err, outputs, errs):
		case !isRefused(err):
			return err
		default: // one topic's or record's trouble, which the client reports of all
			found, err2 := s.rehearseEach(ctx, outputsOf(ss, errs), errs)
			if err2 != nil || !found {
				return cmp.Or(err2, err)
			}
		}
	}
}

// settleable are the tokens of settlements without an error; stale ones get theirs.
func (s *source) settleable(ss []driver.Settlement, errs []error) ([]bus.Token, error) {
	tokens := make([]bus.Token, 0, len(ss))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fail("settle", s.sub.Topic, bus.ErrClosed)
	}
	for i := range ss {
		if l := s.owned(ss[i].Token); l == nil || l.void {
			errs[i] = bus.ErrStale
		}
		if errs[i] == nil {
			tokens = append(tokens, ss[i].Token)
		}
	}
	return tokens, nil
}

// writes are records for one topic.
type writes struct {
	topic   string
	records []kgo.Record
	size    int
	of      []int // the settlement that each is an output of
}

// outputsOf are the outputs of settlements without an error, by topic.
func outputsOf(ss []driver.Settlement, errs []error) []*writes {
	type batch struct {
		messages []*bus.Message
		of       []int
	}
	byTopic := map[string]*batch{}
	for i := range ss {
		if errs[i] != nil {
			continue
		}
		for _, o := range ss[i].Outputs {
			b := byTopic[o.Topic]
			if b == nil {
				b = &batch{}
				byTopic[o.Topic] = b
			}
			b.messages, b.of = append(b.messages, o.Message), append(b.of, i)
		}
	}
	all := make([]*writes, 0, len(byTopic))
	for _, topic := range slices.Sorted(maps.Keys(byTopic)) {
		b := byTopic[topic]
		records, size := encode(topic, b.messages)
		all = append(all, &writes{topic, records, size, b.of})
	}
	return all
}

// removals are the records that delete parked messages.
func (s *source) removals(tokens []bus.Token) []*writes {
	var records []kgo.Record
	for _, t := range tokens {
		if t.Parked {
			records = append(records, removal(s.parking, t.Lane, positionKey(t.Position)))
		}
	}
	if len(records) == 0 {
		return nil
	}
	return []*writes{{topic: s.parking, records: records, size: sizeOf(records)}}
}

// refusal is the error of a transaction that was aborted because of single records.
type refusal struct {
	errs  map[*writes][]error
	exact bool // they are about these writes, for sure
}

func (r *refusal) first() error {
	for w := range r.errs {
		for _, err := range r.errs[w] {
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *refusal) Error() string { return r.first().Error() }
func (r *refusal) Unwrap() error { return r.first() }

// refusedOf notes which settlements have outputs that the broker will never take, and returns
// whether there are any.
func refusedOf(err error, outputs []*writes, errs []error) (found bool) {
	r, ok := errors.AsType[*refusal](err)
	if !ok {
		return false
	}
	for _, w := range outputs {
		for i, err := range r.errs[w] {
			_, said := judge(err) // of a whole batch
			if errors.Is(err, bus.ErrTooLarge) || errors.Is(err, bus.ErrInvalid) && !said || errors.Is(err, bus.ErrNotFound) || r.exact && isRefused(err) {
				errs[w.of[i]] = err
				found = true
			}
		}
	}
	return found
}
