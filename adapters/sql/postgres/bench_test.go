package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/internal/brokertest"
)

func BenchmarkPublish(b *testing.B) { sqltest.BenchPublish(b, database(b)) }
func BenchmarkConsume(b *testing.B) { sqltest.BenchConsume(b, database(b)) }

// BenchmarkRaw measures the library itself with a plain table of the same columns.
func BenchmarkRaw(b *testing.B) {
	pool, err := pgxpool.New(b.Context(), brokertest.URL(b, "postgres"))
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	for _, index := range []string{"", ", PRIMARY KEY (seq)", ", PRIMARY KEY (shard, seq)"} {
		for _, n := range []int{100, 1000} {
			b.Run(fmt.Sprintf("copy%d%s", n, index), func(b *testing.B) {
				_, err := pool.Exec(b.Context(), `DROP TABLE IF EXISTS raw; CREATE TABLE raw (shard smallint, seq bigint, time bigint, id text, key bytea, type text, source text, content_type text, payload bytea`+index+`)`)
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _, _ = pool.Exec(context.Background(), "DROP TABLE raw") }()
				seq := 0
				for b.Loop() {
					msgs := sqltest.BenchMessages(n)
					_, err := pool.CopyFrom(b.Context(), pgx.Identifier{"raw"}, []string{"shard", "seq", "time", "id", "key", "type", "source", "content_type", "payload"},
						pgx.CopyFromSlice(n, func(i int) ([]any, error) {
							seq++
							return []any{seq % 16, seq, seq, "0190aaaa-bbbb-7ccc-8ddd-000000000000", []byte(msgs[i].Key), msgs[i].Type, "/shop", msgs[i].ContentType, msgs[i].Payload}, nil
						}))
					if err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(seq)/b.Elapsed().Seconds(), "msg/s")
			})
		}
	}
}

// BenchmarkRawEach1 publishes as a simple library does: each message is a statement of its own on a
// connection of its own.
func BenchmarkRawEach1(b *testing.B) {
	for _, goroutines := range []int{16, 64} {
		b.Run(fmt.Sprint(goroutines), func(b *testing.B) {
			pc, err := pgxpool.ParseConfig(brokertest.URL(b, "postgres"))
			if err != nil {
				b.Fatal(err)
			}
			pc.MaxConns = 32
			pool, err := pgxpool.NewWithConfig(b.Context(), pc)
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			_, err = pool.Exec(b.Context(), `DROP TABLE IF EXISTS raw; CREATE TABLE raw (seq bigserial PRIMARY KEY, time bigint, id text, key bytea, type text, source text, content_type text, payload bytea)`)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _, _ = pool.Exec(context.Background(), "DROP TABLE raw") }()
			var inserting sync.WaitGroup
			b.ResetTimer()
			for g := range goroutines {
				inserting.Go(func() {
					for i := g; i < b.N; i += goroutines {
						m := sqltest.BenchMessages(1)[0]
						_, err := pool.Exec(context.Background(), "INSERT INTO raw (time, id, key, type, source, content_type, payload) VALUES ($1, $2, $3, $4, $5, $6, $7)",
							i, "0190aaaa-bbbb-7ccc-8ddd-000000000000", []byte(m.Key), m.Type, "/shop", m.ContentType, m.Payload)
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			inserting.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}
