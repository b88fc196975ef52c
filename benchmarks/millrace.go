package main

import (
	"context"
	"time"

	_ "github.com/millrace-go/millrace/adapters/all"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

type millraceSide struct{ b *bus.Bus }

func openMillrace(ctx context.Context, url string) (side, error) {
	b, err := bus.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	return millraceSide{b}, nil
}

func (s millraceSide) publish(ctx context.Context, topic string, first, n, goroutines, perCall int) error {
	return spread(first, n, goroutines, perCall, func(numbers []int) error {
		slab := make([]bus.Message, len(numbers))
		msgs := make([]*bus.Message, len(numbers))
		for i, number := range numbers {
			slab[i] = bus.Message{Key: keys[number%len(keys)], Payload: payload(number)}
			msgs[i] = &slab[i]
		}
		return s.b.PublishMessages(ctx, topic, msgs...)
	})
}

func (s millraceSide) consume(ctx context.Context, topic string, work time.Duration, l *ledger) error {
	workers := router.DefaultWorkers
	if work > 0 {
		workers = 64
	}
	r := router.New(s.b, "bench", router.Workers(workers))
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		time.Sleep(work)
		l.note(m.Payload)
		return nil
	})
	return r.Run(ctx)
}

func (s millraceSide) close() error { return s.b.Close() }
