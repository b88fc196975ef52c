package main

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaPartitions is how many each topic has.
const kafkaPartitions = 4

// makeKafkaTopic creates a topic, so that it is the same for all sides.
func makeKafkaTopic(ctx context.Context, rawURL, topic string) error {
	s, err := rawKafka(ctx, rawURL)
	if err != nil {
		return err
	}
	defer func() { _ = s.close() }()
	_, err = kadm.NewClient(s.(*kafkaSide).cl).CreateTopic(ctx, kafkaPartitions, 1, nil, topic)
	return err
}

// kafkaSide is franz-go with its defaults: idempotent, acks=all, and records with the five headers that ours have.
type kafkaSide struct {
	brokers []string
	cl      *kgo.Client
}

func rawKafka(_ context.Context, rawURL string) (side, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	brokers := strings.Split(u.Host, ",")
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.AllowAutoTopicCreation(), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(1_000_000))
	if err != nil {
		return nil, err
	}
	return &kafkaSide{brokers, cl}, nil
}

var rawHeaders = []kgo.RecordHeader{
	{Key: "ce_specversion", Value: []byte("1.0")},
	{Key: "ce_id", Value: []byte("01980000-0000-7000-8000-000000000000")},
	{Key: "ce_source", Value: []byte("/benchmarks")},
	{Key: "ce_time", Value: []byte("2026-01-02T03:04:05.678901234Z")},
}

func (s *kafkaSide) publish(ctx context.Context, topic string, first, n, goroutines, perCall int) error {
	return spread(first, n, goroutines, perCall, func(numbers []int) error {
		records := make([]*kgo.Record, len(numbers))
		for i, number := range numbers {
			records[i] = &kgo.Record{Topic: topic, Key: []byte(keys[number%len(keys)]), Value: payload(number), Headers: rawHeaders}
		}
		return s.cl.ProduceSync(ctx, records...).FirstErr()
	})
}

func (s *kafkaSide) consume(ctx context.Context, topic string, work time.Duration, l *ledger) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.ConsumerGroup("bench-raw"), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	for ctx.Err() == nil {
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			time.Sleep(work)
			l.note(r.Value)
		})
	}
	return nil
}

func (s *kafkaSide) close() error {
	s.cl.Close()
	return nil
}
