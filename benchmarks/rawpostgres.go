package main

import (
	"context"
	"hash/fnv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// postgresSide is pgx on a table with the columns and the key of ours. A call of many messages is
// one COPY, a single one of a lone caller an INSERT. Single messages of many callers are an upper
// bound, out of reach for a library that does not know the messages beforehand. They go in full
// batches of as many messages as there are callers, by unnest, on four connections.
type postgresSide struct {
	pool  *pgxpool.Pool
	lanes int
}

// pageRows is how many messages the raw SQL sides read at a time.
const pageRows = 1000

// lookAgain is how long the raw SQL sides wait when there is nothing to read.
const lookAgain = time.Millisecond

func rawPostgres(ctx context.Context, p *place) (side, error) {
	pool, err := pgxpool.New(ctx, with(p.url, "pool_max_conns", "16"))
	if err != nil {
		return nil, err
	}
	_, err = pool.Exec(ctx, `
CREATE TABLE raw (topic int NOT NULL, shard smallint NOT NULL, seq bigserial, created bigint NOT NULL, time bigint NOT NULL, id text NOT NULL, msg_key bytea NOT NULL,
	type text NOT NULL, source text NOT NULL, subject text NOT NULL, content_type text NOT NULL, headers text, payload bytea, PRIMARY KEY (topic, shard, seq));
CREATE TABLE raw_pos (shard int PRIMARY KEY, pos bigint NOT NULL);
INSERT INTO raw_pos SELECT g, 0 FROM generate_series(0, 255) g`)
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &postgresSide{pool, p.lanes}, nil
}

var rawColumns = []string{"topic", "shard", "created", "time", "id", "msg_key", "type", "source", "subject", "content_type", "payload"}

func rawShard(key string, lanes int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))
	return int(h.Sum32() % uint32(lanes))
}

func (s *postgresSide) publish(ctx context.Context, l load) error {
	switch {
	case l.perCall > 1:
		return l.send(func(items []item) error {
			now := time.Now()
			_, err := s.pool.CopyFrom(ctx, pgx.Identifier{"raw"}, rawColumns, pgx.CopyFromSlice(len(items), func(i int) ([]any, error) {
				it := &items[i]
				return []any{1, rawShard(it.key, s.lanes), now.UnixMicro(), now.UnixNano(), rawID, []byte(it.key), "", rawSource, "", "", it.payload}, nil
			}))
			return err
		})
	case l.callers == 1:
		return l.send(func(items []item) error {
			it, now := items[0], time.Now()
			_, err := s.pool.Exec(ctx, `INSERT INTO raw (topic, shard, created, time, id, msg_key, type, source, subject, content_type, payload)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`, 1, rawShard(it.key, s.lanes), now.UnixMicro(), now.UnixNano(), rawID, []byte(it.key), "", rawSource, "", "", it.payload)
			return err
		})
	default:
		l.perCall, l.callers = l.callers, 4
		return l.send(func(items []item) error { return s.unnest(ctx, items) })
	}
}

func (s *postgresSide) unnest(ctx context.Context, items []item) error {
	n := len(items)
	shards, times, texts, empty := make([]int16, n), make([]int64, n), make([]string, n), make([]string, n)
	keys, payloads, sources := make([][]byte, n), make([][]byte, n), make([]string, n)
	now := time.Now()
	for i, it := range items {
		shards[i], times[i], texts[i], keys[i], payloads[i], sources[i] = int16(rawShard(it.key, s.lanes)), now.UnixNano(), rawID, []byte(it.key), it.payload, rawSource
	}
	_, err := s.pool.Exec(ctx, `INSERT INTO raw (topic, shard, created, time, id, msg_key, type, source, subject, content_type, payload)
SELECT 1, shard, $1, time, id, msg_key, type, source, subject, content_type, payload
FROM unnest($2::int2[], $3::int8[], $4::text[], $5::bytea[], $6::text[], $7::text[], $8::text[], $9::text[], $10::bytea[]) m (shard, time, id, msg_key, type, source, subject, content_type, payload)`,
		now.UnixMicro(), shards, times, texts, keys, empty, sources, empty, empty, payloads)
	return err
}

// consume reads shard after shard in pages, all columns, and stores its position after each page.
func (s *postgresSide) consume(ctx context.Context, work time.Duration, l *ledger) error {
	positions := make([]int64, s.lanes)
	for {
		idle := true
		for shard := range positions {
			n, err := s.page(ctx, shard, &positions[shard], work, l)
			if err != nil {
				return err
			}
			idle = idle && n == 0
		}
		if idle {
			time.Sleep(lookAgain)
		}
	}
}

func (s *postgresSide) page(ctx context.Context, shard int, pos *int64, work time.Duration, l *ledger) (n int, err error) {
	rows, err := s.pool.Query(ctx, `SELECT seq, time, id, msg_key, type, source, subject, content_type, headers, payload
FROM raw WHERE topic = 1 AND shard = $1 AND seq > $2 ORDER BY seq LIMIT $3`, shard, *pos, pageRows)
	if err != nil {
		return 0, err
	}
	var at int64
	var id, kind, source, subject, contentType string
	var headers *string
	var key, payload []byte
	_, err = pgx.ForEachRow(rows, []any{pos, &at, &id, &key, &kind, &source, &subject, &contentType, &headers, &payload}, func() error {
		pass(work)
		l.note(payload)
		n++
		return nil
	})
	if err == nil && n > 0 {
		_, err = s.pool.Exec(ctx, "UPDATE raw_pos SET pos = $1 WHERE shard = $2", *pos, shard)
	}
	return n, err
}

func (s *postgresSide) close() error {
	s.pool.Close()
	return nil
}
