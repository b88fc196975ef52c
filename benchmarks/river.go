package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	queue "github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// river is the job queue of that name: each message is a job. It keeps no order by key.
var river = map[string]opener{"postgres": openRiver}

type riverSide struct {
	pool   *pgxpool.Pool
	insert *queue.Client[pgx.Tx]
}

type job struct {
	Key     string `json:"key"`
	Payload []byte `json:"payload"`
}

func (job) Kind() string { return "bench" }

type worker struct {
	queue.WorkerDefaults[job]
	work time.Duration
	l    *ledger
}

func (w *worker) Work(_ context.Context, j *queue.Job[job]) error {
	pass(w.work)
	w.l.note(j.Args.Payload)
	return nil
}

func openRiver(ctx context.Context, p *place) (side, error) {
	pool, err := pgxpool.New(ctx, with(p.url, "pool_max_conns", "32"))
	if err != nil {
		return nil, err
	}
	driver := riverpgxv5.New(pool)
	m, err := rivermigrate.New(driver, nil)
	if err == nil {
		_, err = m.Migrate(ctx, rivermigrate.DirectionUp, nil)
	}
	var c *queue.Client[pgx.Tx]
	if err == nil {
		c, err = queue.NewClient(driver, &queue.Config{})
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &riverSide{pool, c}, nil
}

func (s *riverSide) publish(ctx context.Context, l load) error {
	return l.send(func(items []item) error {
		if len(items) == 1 {
			_, err := s.insert.Insert(ctx, job{items[0].key, items[0].payload}, nil)
			return err
		}
		params := make([]queue.InsertManyParams, len(items))
		for i, it := range items {
			params[i] = queue.InsertManyParams{Args: job{it.key, it.payload}}
		}
		_, err := s.insert.InsertManyFast(ctx, params)
		return err
	})
}

func (s *riverSide) consume(ctx context.Context, work time.Duration, l *ledger) error {
	workers := queue.NewWorkers()
	queue.AddWorker(workers, &worker{work: work, l: l})
	c, err := queue.NewClient(riverpgxv5.New(s.pool), &queue.Config{
		Workers: workers, Queues: map[string]queue.QueueConfig{queue.QueueDefault: {MaxWorkers: 100}},
	})
	if err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	<-c.Stopped()
	return nil
}

func (s *riverSide) close() error {
	s.pool.Close()
	return nil
}
