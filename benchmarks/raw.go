package main

import (
	"context"
	"sync"
	"time"
)

// raws are the clients themselves, used as well as one can.
var raws = map[string]func(ctx context.Context, url string) (side, error){
	"memory": rawMemory,
	"kafka":  rawKafka,
}

// rawChannel is a Go channel.
type rawChannel struct {
	mu     sync.Mutex
	topics map[string]chan []byte
}

func rawMemory(context.Context, string) (side, error) {
	return &rawChannel{topics: map[string]chan []byte{}}, nil
}

func (s *rawChannel) topic(name string) chan []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.topics[name] == nil {
		s.topics[name] = make(chan []byte, 1000)
	}
	return s.topics[name]
}

func (s *rawChannel) publish(_ context.Context, topic string, first, n, goroutines, perCall int) error {
	ch := s.topic(topic)
	return spread(first, n, goroutines, perCall, func(numbers []int) error {
		for _, number := range numbers {
			ch <- payload(number)
		}
		return nil
	})
}

func (s *rawChannel) consume(ctx context.Context, topic string, work time.Duration, l *ledger) error {
	ch := s.topic(topic)
	for {
		select {
		case p := <-ch:
			time.Sleep(work)
			l.note(p)
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *rawChannel) close() error { return nil }
