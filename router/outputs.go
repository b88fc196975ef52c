package router

import (
	"context"
	"slices"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// publishOutputs ends a call that succeeded: it publishes the emitted messages, now or with the
// settlement.
func (c *consumer) publishOutputs(t *task, h *bus.Handling) error {
	if !c.cfg.transactional || t.joined {
		return engine.Flush(t.lane.ctx, h, nil)
	}
	onSettled, err := engine.Take(t.lane.ctx, h, nil, func(topic, _ string, m *bus.Message) {
		t.outputs = append(t.outputs, driver.Output{Topic: topic, Message: m})
	})
	t.onSettled = onSettled
	return err
}

// publishBatchOutputs is publishOutputs for a batch in which some messages have failed.
func (c *consumer) publishBatchOutputs(ctx context.Context, tasks []*task, h *bus.Handling, failed map[string]bool) error {
	isFailed := func(id string) bool { return failed[id] }
	if !c.cfg.transactional || slices.ContainsFunc(tasks, func(t *task) bool { return t.joined }) {
		return engine.Flush(ctx, h, isFailed)
	}
	var good []*task
	byID := map[string]*task{}
	for _, t := range tasks {
		if id := t.h.Delivery.ID; !failed[id] {
			good = append(good, t)
			byID[id] = t
		}
	}
	onSettled, err := engine.Take(ctx, h, isFailed, func(topic, cause string, m *bus.Message) {
		t := byID[cause]
		switch {
		case t != nil:
		case len(good) == 0:
			return
		default: // of a message of another batch
			t = good[0]
		}
		t.outputs = append(t.outputs, driver.Output{Topic: topic, Message: m})
	})
	if err != nil {
		return err
	}
	if len(good) == 0 { // nothing is settled that could tell
		if onSettled != nil {
			_ = onSettled(ctx, nil) // an ending's error counts only where something has succeeded
		}
		return nil
	}
	if onSettled != nil {
		all := &together{left: len(good), onSettled: onSettled}
		for _, t := range good {
			t.onSettled = all.settled
		}
	}
	return nil
}

// together tells once, when all messages of a batch are settled. The settler alone calls it.
type together struct {
	left      int
	first     error
	onSettled func(context.Context, error) error
}

func (b *together) settled(ctx context.Context, err error) error {
	if b.first == nil {
		b.first = err
	}
	if b.left--; b.left > 0 {
		return nil
	}
	return b.onSettled(ctx, b.first)
}
