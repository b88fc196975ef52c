package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/pgxoutbox"
	"github.com/millrace-go/millrace/router"
)

// BenchmarkRelay drains an outbox that was filled before: -benchtime 100000x. PublishKafka is the
// broker's own time for the same messages in the same calls.
func BenchmarkRelay(b *testing.B) {
	for _, to := range []string{"memory", "kafka"} {
		for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL, outbox.SQLite} {
			for _, keys := range []int{0, 1, 500, 100_000} {
				b.Run(fmt.Sprintf("%v-%s/keys=%d", d, to, keys), func(b *testing.B) {
					s := newStore(b, d)
					url := "memory:"
					if to == "kafka" {
						url = brokertest.URL(b, "kafka")
					}
					target := openBus(b, url)
					topic := unique("bench")
					msgs := benchMessages(b.N, keys)
					tx, err := s.db.BeginTx(b.Context(), nil)
					if err != nil {
						b.Fatal(err)
					}
					if err := s.outbox.PublishMessages(b.Context(), tx, topic, msgs...); err != nil {
						b.Fatal(err)
					}
					if err := tx.Commit(); err != nil {
						b.Fatal(err)
					}
					b.ResetTimer()
					r, stop := s.runRelay(b, target, outbox.RelayConfig{})
					for r.Stats().Sent < int64(b.N) {
						time.Sleep(time.Millisecond) // the counters have no event
					}
					stop()
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
				})
			}
		}
	}
}

func BenchmarkPublishKafka(b *testing.B) {
	target := openBus(b, brokertest.URL(b, "kafka"))
	topic := unique("bench")
	msgs := benchMessages(b.N, 500)
	b.ResetTimer()
	for len(msgs) > 0 {
		n := min(500, len(msgs))
		if err := target.PublishMessages(b.Context(), topic, msgs[:n]...); err != nil {
			b.Fatal(err)
		}
		msgs = msgs[n:]
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func benchMessages(n, keys int) []*bus.Message {
	msgs := make([]*bus.Message, n)
	for i := range msgs {
		msgs[i] = &bus.Message{Type: "bench", ContentType: "application/json", Payload: make([]byte, 200), Headers: bus.Headers{{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}}
		if keys > 0 {
			msgs[i].Key = fmt.Sprint("key-", i%keys)
		}
	}
	return msgs
}

// How a relay learns of a commit, in BenchmarkLatency.
const (
	told      = "told"      // by outbox.Do, in the same process
	untold    = "untold"    // not at all: in the same process, it sees the publish, and looks often for a while
	announced = "announced" // in another process, by NOTIFY
)

// BenchmarkLatency is the time from a commit to the handler, with nothing else going on: -benchtime
// 200x.
func BenchmarkLatency(b *testing.B) {
	for _, to := range []string{"memory", "kafka"} {
		for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL, outbox.SQLite} {
			for _, how := range []string{told, untold, announced} {
				if how == announced && d != outbox.Postgres {
					continue
				}
				b.Run(fmt.Sprintf("%v-%s/%s", d, to, how), func(b *testing.B) { latency(b, d, to, how) })
			}
		}
	}
}

func latency(b *testing.B, d outbox.Dialect, to, how string) {
	s := newStore(b, d)
	url := "memory:"
	if to == "kafka" {
		url = brokertest.URL(b, "kafka")
	}
	target := openBus(b, url)
	topic := unique("bench")
	came := make(chan time.Time, 1)
	r := router.New(target, unique("g"))
	router.On(r, topic, func(context.Context, placed) error { came <- time.Now(); return nil })
	bustest.Run(b, r)
	var config outbox.RelayConfig
	if how == announced {
		pool, err := pgxpool.New(b.Context(), s.dsn)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(pool.Close)
		config.Listen = pgxoutbox.Listen(pool)
	}
	s.runRelay(b, target, config)
	if how == announced { // an outbox that the relay's does not know is another process to it
		writer, err := outbox.New(d, s.config)
		if err != nil {
			b.Fatal(err)
		}
		s.outbox = writer
	}
	took := make([]time.Duration, 0, b.N)
	for i := range b.N + 5 {
		var committed time.Time
		if how != untold {
			err := outbox.Do(b.Context(), s.outbox, outbox.SQL(s.db, nil), func(_ *sql.Tx, p bus.Publisher) error {
				return p.Publish(b.Context(), topic, placed{Number: i})
			})
			if err != nil {
				b.Fatal(err)
			}
			committed = time.Now()
		} else {
			tx, err := s.db.BeginTx(b.Context(), nil)
			if err != nil {
				b.Fatal(err)
			}
			if err := s.outbox.Publish(b.Context(), tx, topic, placed{Number: i}); err != nil {
				b.Fatal(err)
			}
			time.Sleep(rand.N(30 * time.Millisecond)) // the rest of the transaction's work
			if err := tx.Commit(); err != nil {
				b.Fatal(err)
			}
			committed = time.Now()
		}
		if d := (<-came).Sub(committed); i >= 5 { // the first ones open connections
			took = append(took, d)
		}
		time.Sleep(150*time.Millisecond + rand.N(50*time.Millisecond)) // until the relay hardly looks any more
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(0, "ns/op")
}
