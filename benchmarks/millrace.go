package main

import (
	"context"
	"time"

	_ "github.com/millrace-go/millrace/adapters/all"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var millrace = map[string]opener{
	"memory": openMillrace, "kafka": openMillrace, "rabbitmq": openMillrace,
	"postgres": openMillrace, "mysql": openMillrace, "sqlite": openMillrace,
	"outbox": openMillraceOutbox,
}

// millraceSide is a bus with its defaults.
type millraceSide struct {
	b     *bus.Bus
	topic string
	// workers is the number of workers; 0: the default, and 64 for a handler that waits.
	workers int
}

func openMillrace(ctx context.Context, p *place) (side, error) {
	b, err := bus.Open(ctx, p.ours)
	if err != nil {
		return nil, err
	}
	return &millraceSide{b: b, topic: p.topic}, nil
}

func (s *millraceSide) publish(ctx context.Context, l load) error {
	return publishTo(ctx, s.b, s.topic, l)
}

func publishTo(ctx context.Context, b *bus.Bus, topic string, l load) error {
	return l.send(func(items []item) error {
		if len(items) == 1 {
			return b.PublishMessages(ctx, topic, &bus.Message{Key: items[0].key, Payload: items[0].payload})
		}
		slab := make([]bus.Message, len(items))
		msgs := make([]*bus.Message, len(items))
		for i, it := range items {
			slab[i] = bus.Message{Key: it.key, Payload: it.payload}
			msgs[i] = &slab[i]
		}
		return b.PublishMessages(ctx, topic, msgs...)
	})
}

func (s *millraceSide) consume(ctx context.Context, work time.Duration, l *ledger) error {
	workers := s.workers
	switch {
	case workers != 0:
	case work > 0:
		workers = 64
	default:
		workers = router.DefaultWorkers
	}
	r := router.New(s.b, s.topic, router.Workers(workers))
	r.HandleFunc(s.topic, func(_ context.Context, m *bus.Message) error {
		pass(work)
		l.note(m.Payload)
		return nil
	})
	return r.Run(ctx)
}

func (s *millraceSide) close() error { return s.b.Close() }

// pass is a handler's work: waiting for something else.
func pass(work time.Duration) {
	if work > 0 {
		time.Sleep(work)
	}
}
