package main

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaSide is franz-go with its defaults: idempotent, acks=all, and records with the headers that
// ours have.
type kafkaSide struct {
	brokers []string
	topic   string
	cl      *kgo.Client
}

func rawKafka(_ context.Context, p *place) (side, error) {
	addresses, err := hosts(p.url)
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(addresses...), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(1_000_000))
	if err != nil {
		return nil, err
	}
	return &kafkaSide{addresses, p.topic, cl}, nil
}

var rawHeaders = []kgo.RecordHeader{
	{Key: "ce_specversion", Value: []byte("1.0")},
	{Key: "ce_id", Value: []byte(rawID)},
	{Key: "ce_source", Value: []byte(rawSource)},
	{Key: "ce_time", Value: []byte("2026-01-02T03:04:05.678901234Z")},
}

// The raw sides' messages have these values for Millrace's own fields.
const (
	rawID     = "01980000-0000-7000-8000-000000000000"
	rawSource = "/benchmarks"
)

func (s *kafkaSide) publish(ctx context.Context, l load) error {
	return l.send(func(items []item) error {
		slab := make([]kgo.Record, len(items))
		records := make([]*kgo.Record, len(items))
		for i, it := range items {
			slab[i] = kgo.Record{Topic: s.topic, Key: []byte(it.key), Value: it.payload, Headers: rawHeaders}
			records[i] = &slab[i]
		}
		return s.cl.ProduceSync(ctx, records...).FirstErr()
	})
}

func (s *kafkaSide) consume(ctx context.Context, work time.Duration, l *ledger) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.ConsumerGroup(s.topic), kgo.ConsumeTopics(s.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	for ctx.Err() == nil {
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			pass(work)
			l.note(r.Value)
		})
	}
	return nil
}

func (s *kafkaSide) close() error {
	s.cl.Close()
	return nil
}
