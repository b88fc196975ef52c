package main

import (
	"context"
	"time"
)

// memorySide is a Go channel.
type memorySide chan []byte

func rawMemory(context.Context, *place) (side, error) { return make(memorySide, 1000), nil }

func (s memorySide) publish(_ context.Context, l load) error {
	return l.send(func(items []item) error {
		for _, it := range items {
			s <- it.payload
		}
		return nil
	})
}

func (s memorySide) consume(ctx context.Context, work time.Duration, l *ledger) error {
	for {
		select {
		case p := <-s:
			pass(work)
			l.note(p)
		case <-ctx.Done():
			return nil
		}
	}
}

func (s memorySide) close() error { return nil }
