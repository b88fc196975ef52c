package outbox

import (
	"context"
	"errors"

	"github.com/millrace-go/millrace/bus"
)

// call is one call to the broker, for the first row of each of some lanes.
type call struct {
	topic  string
	lanes  []*laneRows
	failed error // as PublishMessages returned it

	failing *failingTopic // the topic, if many of its lanes fail
	poison  bool          // it stores the row in the poison store
	cause   error
	block   *block
}

// start makes the call in a goroutine, which reports to results. results always has room, except
// for calls to the poison store beyond maxCalls: their goroutines wait.
func (p *pump) start(ctx context.Context, c *call) {
	p.calls++
	first := make([]row, len(c.lanes))
	for i, l := range c.lanes {
		first[i] = l.rows[0]
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, p.config.PublishTimeout)
		defer cancel()
		if c.poison {
			c.failed = p.putPoison(ctx, c, first[0])
		} else {
			msgs := make([]*bus.Message, len(first))
			for i := range first {
				msgs[i] = first[i].msg
			}
			c.failed = p.bus.PublishMessages(ctx, c.topic, msgs...)
		}
		p.results <- c
	}()
}

// err is the outcome of the i-th row.
func (c *call) err(i int) error {
	pe, ok := errors.AsType[*bus.PublishError](c.failed)
	if ok && len(pe.Errs) == len(c.lanes) {
		return pe.Errs[i]
	}
	return c.failed
}
