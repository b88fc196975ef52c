package router

import (
	"context"
	"slices"

	"github.com/millrace-go/millrace/bus"
)

// conclude ends a call that succeeded: what it emitted is published, now or with the settlement.
func (c *consumer) conclude(t *task, h *bus.Handling) error {
	if !c.cfg.transactional || t.joined {
		return h.Flush(t.lane.ctx, nil)
	}
	outputs, told, err := h.Take(t.lane.ctx, nil)
	t.outputs, t.told = outputs, told
	return err
}

// concludeBatch is conclude for a batch, of whose messages some have failed.
func (c *consumer) concludeBatch(ctx context.Context, tasks []*task, h *bus.Handling, failed map[string]bool) error {
	isFailed := func(id string) bool { return failed[id] }
	if !c.cfg.transactional || slices.ContainsFunc(tasks, func(t *task) bool { return t.joined }) {
		return h.Flush(ctx, isFailed)
	}
	outputs, told, err := h.Take(ctx, isFailed)
	if err != nil {
		return err
	}
	var good []*task
	byID := map[string]*task{}
	for _, t := range tasks {
		if id := t.h.Delivery.ID; !failed[id] {
			good = append(good, t)
			byID[id] = t
		}
	}
	if len(good) == 0 { // nothing is settled that could tell
		if told != nil {
			_ = told(ctx, nil) // an ending's error counts only where something has succeeded
		}
		return nil
	}
	for _, o := range outputs {
		t := byID[o.Cause]
		if t == nil { // of a message of another batch
			t = good[0]
		}
		t.outputs = append(t.outputs, o)
	}
	if told != nil {
		all := &together{left: len(good), told: told}
		for _, t := range good {
			t.told = all.tell
		}
	}
	return nil
}

// together tells once, when all messages of a batch are settled. The settler alone calls it.
type together struct {
	left  int
	first error
	told  func(context.Context, error) error
}

func (b *together) tell(ctx context.Context, err error) error {
	if b.first == nil {
		b.first = err
	}
	if b.left--; b.left > 0 {
		return nil
	}
	return b.told(ctx, b.first)
}
