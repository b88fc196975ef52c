package router

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
)

// checkJoining has handlers that settle in their own transactions try whether the bus is in the database of these. While they
// cannot begin one it tries again until the consumer is stopped.
func (c *consumer) checkJoining() error {
	host, _ := bus.As[driver.TransactionHost](c.core.bus)
	for _, r := range c.table.routes {
		if r.joining == nil {
			continue
		}
		for b := (backoff.Backoff{}); ; b.Wait(c.intake) {
			err := r.joining.CheckJoining(c.intake, host)
			if err == nil {
				c.conditions.Note(beginning, nil)
				break
			}
			err = fmt.Errorf("handler %s: %w", r.name, err)
			if c.intake.Err() != nil || !bus.IsRetryable(err) {
				return err
			}
			c.setState(StateStarting, err)
			c.conditions.Note(beginning, err)
		}
	}
	return nil
}

// join settles tasks of one call in the transaction of their handler. The call's worker has the
// tasks.
func (c *consumer) join(tasks []*task) driver.JoinFunc {
	source := c.source.(driver.JoiningSource)
	return func(ctx context.Context, tx driver.Execer, done []*bus.Message, outputs []driver.Output) (func(error) error, error) {
		joined := make([]*task, len(done))
		for i, m := range done {
			k := slices.IndexFunc(tasks, func(t *task) bool { return t.h.Delivery.Message == m })
			if k < 0 {
				err := fmt.Errorf("settle in the handler's transaction: %w: message %q is not one of the call's", bus.ErrInvalid, m.ID)
				return func(error) error { return err }, err
			}
			joined[i] = tasks[k]
		}
		end, err := source.SettleIn(ctx, tx, c.tokensOf(joined), outputs)
		each, byToken := errors.AsType[*bus.BatchError](err)
		return func(err error) error {
			if err = end(err); err != nil && !errors.Is(err, bus.ErrStale) {
				return err
			}
			for i, t := range joined {
				// Of a message that was withdrawn nothing is left to settle.
				t.joined = err == nil || byToken && errors.Is(each.Errs[i], bus.ErrNotFound)
				t.stale = !t.joined
			}
			if err != nil { // not by token, which a batch would take for its outcome
				err = fmt.Errorf("%w: %s", bus.ErrStale, err.Error())
			}
			return err
		}, err
	}
}

// tokensOf returns the tasks' tokens. A task may be parked while its handler runs, and its token is
// stale then; the task is tried again.
func (c *consumer) tokensOf(tasks []*task) []bus.Token {
	c.mu.Lock()
	defer c.mu.Unlock()
	tokens := make([]bus.Token, len(tasks))
	for i, t := range tasks {
		tokens[i] = t.token()
	}
	return tokens
}
