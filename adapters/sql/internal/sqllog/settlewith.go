package sqllog

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

var errNotTransactional = fmt.Errorf("%w: the subscription is not transactional", bus.ErrUnsupported)

// SettleWith implements driver.TransactionalSource.
func (s *Source) SettleWith(ctx context.Context, ss []driver.Settlement) error {
	if !s.transactional {
		return s.driver.fail("settle", s.topic.name, errNotTransactional)
	}
	errs := make([]error, len(ss))
	all := make([]int, len(ss))
	for i := range ss {
		all[i] = i
	}
	if err := s.settleAll(ctx, ss, all, errs); err != nil {
		return s.driver.fail("settle", s.topic.name, err)
	}
	return bus.PerMessage(errs)
}

// settleTransactional is Settle of a source that is transactional.
func (s *Source) settleTransactional(ctx context.Context, tokens []bus.Token) error {
	ss := make([]driver.Settlement, len(tokens))
	for i, t := range tokens {
		ss[i].Token = t
	}
	err := s.SettleWith(ctx, ss)
	if each, ok := errors.AsType[*bus.BatchError](err); ok {
		stale := len(each.Unwrap())
		return s.driver.fail("settle", s.topic.name, fmt.Errorf("%d of %d: %w", stale, len(tokens), bus.ErrStale))
	}
	return err
}

// settleAll settles the settlements at places in one transaction, and notes in errs which cannot be
// settled. If the database will never take one of the outputs, settleAll settles them in smaller
// transactions, to find the output's settlement.
func (s *Source) settleAll(ctx context.Context, ss []driver.Settlement, places []int, errs []error) error {
	for {
		var left []int
		for _, i := range places {
			if errs[i] == nil {
				left = append(left, i)
			}
		}
		if len(left) == 0 {
			return nil
		}
		places = left
		records, err := s.outputs(ctx, ss, places, errs)
		if err != nil {
			return err
		}
		if records == nil {
			continue // some were refused
		}
		tokens := make([]bus.Token, len(places))
		for k, i := range places {
			tokens[k] = ss[i].Token
		}
		err = s.settleOnce(ctx, tokens, records)
		each, byToken := errors.AsType[*bus.BatchError](err)
		switch {
		case err == nil:
			return nil
		case byToken:
			for k, i := range places {
				errs[i] = each.Errs[k]
			}
			continue
		case errors.Is(err, bus.ErrStale): // the next try shows which settlement is stale
			continue
		case len(records) == 0 || !s.driver.store.Fault(err).OfMessage && !errors.Is(err, errRefused):
			return err
		case len(places) == 1:
			errs[places[0]] = s.refusal(err)
			return nil
		}
		half := len(places) / 2
		if err := s.settleAll(ctx, ss, places[:half], errs); err != nil {
			return err
		}
		return s.settleAll(ctx, ss, places[half:], errs)
	}
}

func (s *Source) refusal(err error) error {
	if s.driver.store.Fault(err).TooLarge {
		err = errors.Join(bus.ErrTooLarge, err)
	}
	return s.driver.fail("settle", s.topic.name, err)
}

// settleOnce settles tokens and appends records in one transaction.
func (s *Source) settleOnce(ctx context.Context, tokens []bus.Token, records []Record) error {
	err := s.inTransaction(ctx, func(ctx context.Context, tx *sql.Tx) (*settlement, error) {
		st, err := s.enter(ctx, tokens)
		if err != nil {
			return nil, err
		}
		if err := st.write(ctx, tx, tokens); err != nil {
			return st, err
		}
		return st, s.append(ctx, tx, records)
	})
	if err == nil {
		s.driver.publisher.announce(records)
	}
	return err
}

// inTransaction runs do in a transaction, commits it, and ends the settlement that do returns.
func (s *Source) inTransaction(ctx context.Context, do func(ctx context.Context, tx *sql.Tx) (*settlement, error)) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tx, err := s.driver.store.DB().BeginTx(ctx, s.driver.dialect.txOptions())
	if err != nil {
		return err
	}
	st, err := do(ctx, tx)
	if err == nil {
		return st.end(tx.Commit())
	}
	// before others lock the lanes: they would wait for its locks; an error changes nothing
	_ = tx.Rollback()
	if st != nil {
		st.failed = true
		err = st.end(err)
	}
	return err
}

// append inserts records in batches that the database takes.
func (s *Source) append(ctx context.Context, x driver.Execer, records []Record) error {
	d := s.driver.dialect
	for len(records) > 0 {
		n, size := 0, 0
		for n < len(records) && n < d.BatchRows {
			if size += records[n].Message.Size(); n > 0 && size > d.BatchBytes {
				break
			}
			n++
		}
		if err := s.driver.appendIn(ctx, x, records[:n]); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

// outputs are the records of the outputs of those at places, by topic, so that locks are taken in
// one order. It is nil if it has noted in errs that some are refused.
func (s *Source) outputs(ctx context.Context, ss []driver.Settlement, places []int, errs []error) ([]Record, error) {
	d := s.driver
	records := []Record{}
	refused := false
	for _, i := range places {
		for _, o := range ss[i].Outputs {
			t, err := d.topics.get(ctx, o.Topic)
			if err != nil && (d.store.Fault(err).Retryable || ctx.Err() != nil) {
				return nil, err
			}
			if limit := d.dialect.MaxMessage; err == nil && limit > 0 && o.Message.Size() > limit {
				err = fmt.Errorf("%w: %d bytes with its headers: this bus takes at most %d", bus.ErrTooLarge, o.Message.Size(), limit)
			}
			if err != nil {
				errs[i], refused = d.fail("publish", o.Topic, err), true
				break
			}
			records = append(records, d.record(t, o.Message))
		}
	}
	if refused {
		return nil, nil
	}
	byTopic(records)
	return records, nil
}

// byTopic orders records so that topics are locked in one order, and keeps the order of each.
func byTopic(records []Record) {
	slices.SortStableFunc(records, func(a, b Record) int { return cmp.Compare(a.Topic, b.Topic) })
}
