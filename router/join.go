package router

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-go/millrace/bus"
)

// checkJoining has handlers that settle in their own transactions try whether the bus is in the database of these. While they
// cannot begin one it tries again until the consumer is stopped.
func (c *consumer) checkJoining() error {
	host, _ := bus.As[bus.TransactionHost](c.core.bus)
	for _, r := range c.table.routes {
		if r.joining == nil {
			continue
		}
		for b := (backoff{}); ; b.wait(c.intake) {
			err := r.joining.CheckJoining(c.intake, host)
			if err == nil {
				break
			}
			err = fmt.Errorf("handler %s: %w", r.name, err)
			if c.intake.Err() != nil || !bus.IsRetryable(err) {
				return err
			}
			c.setState(StateStarting, err)
			c.log.Warn("cannot begin the handler's transaction yet", "err", err)
		}
	}
	return nil
}

// join settles tasks of one call, whose worker has them, in the transaction of their handler.
func (c *consumer) join(tasks []*task) bus.JoinFunc {
	source := c.source.(bus.JoiningSource)
	return func(ctx context.Context, tx bus.Execer, done []*bus.Message, outputs []bus.Output) (func(error) error, error) {
		joined := make([]*task, len(done))
		for i, m := range done {
			k := slices.IndexFunc(tasks, func(t *task) bool { return t.h.Delivery.Message == m })
			if k < 0 {
				err := fmt.Errorf("settle in the handler's transaction: %w: message %q is not one of the call's", bus.ErrInvalid, m.ID)
				return func(error) error { return err }, err
			}
			joined[i] = tasks[k]
		}
		tokens := c.tokensOf(joined)
		end, err := source.SettleIn(ctx, tx, tokens, outputs)
		each, byToken := errors.AsType[*bus.BatchError](err)
		return func(err error) error {
			if err = end(err); err == nil {
				for _, t := range joined {
					t.joined = true
				}
			} else if byToken && c.parkedMeanwhile(joined, tokens, each.Errs) {
				err = fmt.Errorf("%w: %w", bus.ErrAgain, err)
			}
			return err
		}, err
	}
}

func (c *consumer) tokensOf(tasks []*task) []bus.Token {
	c.mu.Lock()
	defer c.mu.Unlock()
	tokens := make([]bus.Token, len(tasks))
	for i, t := range tasks {
		tokens[i] = t.token()
	}
	return tokens
}

// parkedMeanwhile says whether tasks are stale only because they were parked while their handler ran, and have other tokens
// now. Of those that were withdrawn nothing is left to settle.
func (c *consumer) parkedMeanwhile(tasks []*task, tokens []bus.Token, stale []error) (parked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, t := range tasks {
		if !errors.Is(stale[i], bus.ErrStale) {
			continue
		}
		for t.marking {
			c.marks.Wait()
		}
		switch {
		case errors.Is(stale[i], bus.ErrNotFound):
			t.joined = true
		case t.token() != tokens[i]:
			parked = true
		}
	}
	return parked
}
