package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// BenchmarkRelay drains an outbox that was filled before: -benchtime 100000x. PublishKafka is what the broker itself takes
// of the same messages in the same calls.
func BenchmarkRelay(b *testing.B) {
	for _, to := range []string{"memory", "kafka"} {
		for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL, outbox.SQLite} {
			for _, keys := range []int{0, 1, 500, 100_000} {
				b.Run(fmt.Sprintf("%v-%s/keys=%d", d, to, keys), func(b *testing.B) {
					s := newStore(b, d)
					url := "memory:"
					if to == "kafka" {
						url = serverURL(b, "MILLRACE_KAFKA_URL")
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
						time.Sleep(time.Millisecond)
					}
					stop()
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
				})
			}
		}
	}
}

func BenchmarkPublishKafka(b *testing.B) {
	target := openBus(b, serverURL(b, "MILLRACE_KAFKA_URL"))
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

// BenchmarkLatency is the time from a commit to the handler, with nothing else going on: -benchtime 300x.
func BenchmarkLatency(b *testing.B) {
	for _, to := range []string{"memory", "kafka"} {
		for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL, outbox.SQLite} {
			for _, told := range []bool{true, false} {
				b.Run(fmt.Sprintf("%v-%s/told=%v", d, to, told), func(b *testing.B) { latency(b, d, to, told) })
			}
		}
	}
}

// latency measures with relays that are told of commits by outbox.Do, or with ones that see the publish and not the commit.
func latency(b *testing.B, d outbox.Dialect, to string, told bool) {
	s := newStore(b, d)
	url := "memory:"
	if to == "kafka" {
		url = serverURL(b, "MILLRACE_KAFKA_URL")
	}
	target := openBus(b, url)
	topic := unique("bench")
	came := make(chan time.Time, 1)
	r := router.New(target, unique("g"))
	router.On(r, topic, func(context.Context, placed) error { came <- time.Now(); return nil })
	bustest.Run(b, r)
	s.runRelay(b, target, outbox.RelayConfig{})
	took := make([]time.Duration, 0, b.N)
	for i := range b.N + 5 {
		var committed time.Time
		if told {
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
		time.Sleep(rand.N(20 * time.Millisecond)) // idle
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(0, "ns/op")
}
