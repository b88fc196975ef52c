package sqllog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// SettleIn implements driver.JoiningSource.
func (s *Source) SettleIn(ctx context.Context, tx driver.Execer, tokens []bus.Token, outputs []driver.Output) (end func(error) error, err error) {
	missing, records := s.known(outputs)
	var st *settlement
	switch {
	case !s.transactional:
		err = errNotTransactional
	case missing != "":
		err = fmt.Errorf("topic %q is not known in this process yet", missing)
	default:
		st, err = s.joinIn(ctx, tx, tokens, records)
	}
	return func(cause error) error {
		switch {
		case missing != "":
			if _, err := s.driver.topics.get(context.WithoutCancel(ctx), missing); err != nil {
				return s.driver.fail("publish", missing, err)
			}
			return fmt.Errorf("%w: %w", driver.ErrAgain, cause)
		case st == nil:
			return cause
		}
		if cause = st.end(cause); cause == nil {
			s.driver.publisher.announce(records)
		}
		return cause
	}, s.joinFailure(err)
}

// joinIn settles and publishes in tx.
func (s *Source) joinIn(ctx context.Context, tx driver.Execer, tokens []bus.Token, records []Record) (*settlement, error) {
	if lock := s.driver.dialect.WriteLock; lock != "" {
		if _, err := tx.ExecContext(ctx, s.driver.dialect.SQL(lock)); err != nil {
			return nil, err
		}
	}
	if check := s.driver.dialect.Check; check != "" {
		if _, err := tx.ExecContext(ctx, check); err != nil {
			return nil, err
		}
	}
	st, err := s.enter(ctx, tokens)
	if err != nil {
		return nil, err
	}
	if err = st.write(ctx, tx, tokens); err == nil {
		if err = s.append(ctx, tx, records); err != nil {
			st.failed = true
		}
	}
	return st, err
}

// joinFailure turns an error into SettleIn's error. A failure that passes in a moment, and is not
// the message's, costs the message no try.
func (s *Source) joinFailure(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*bus.BatchError](err); ok {
		return err
	}
	failure := s.driver.fail("settle", s.topic.name, err)
	if isPassing(err) {
		return bus.Unavailable(failure, passing)
	}
	return failure
}

// passing is the pause after which a handler is called again that was too early.
const passing = 50 * time.Millisecond

// known makes records of outputs. missing is the first unknown topic. The topic cannot be looked
// for or created while the transaction lasts: the transaction's locks may be in the way.
func (s *Source) known(outputs []driver.Output) (missing string, records []Record) {
	for _, o := range outputs {
		t, ok := s.driver.topics.cached(o.Topic)
		if !ok {
			return o.Topic, nil
		}
		records = append(records, s.driver.record(t, o.Message))
	}
	byTopic(records)
	return "", records
}

// CheckTransaction implements driver.TransactionHost. It looks for the identity of the installation, by a change that a driver counts
// in every mode.
func (d *Driver) CheckTransaction(ctx context.Context, tx driver.Execer) error {
	if !d.enter() {
		return d.fail("check", "", bus.ErrClosed)
	}
	defer d.calls.Done()
	n, err := affected(ctx, tx, d.dialect.SQL("UPDATE {meta} SET swept = swept + 1 WHERE install = ?"), d.install)
	if err == nil && n == 0 {
		err = errors.New("the tables there belong to another bus")
	}
	if err != nil {
		return fmt.Errorf("%s: %w: the handler's transaction is not in the database of the bus: %w", d.dialect.Name, bus.ErrInvalid, err)
	}
	if condition := d.dialect.JoinCondition; condition != "" {
		if n, err = affected(ctx, tx, d.dialect.SQL("UPDATE {meta} SET swept = swept + 1 WHERE "+condition)); err == nil && n == 0 {
			err = errors.New(d.dialect.JoinHint)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: the handler's transaction: %w", d.dialect.Name, bus.ErrInvalid, err)
		}
	}
	return nil
}

var (
	_ driver.JoiningSource   = (*Source)(nil)
	_ driver.TransactionHost = (*Driver)(nil)
)
