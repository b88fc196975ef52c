package outbox_test

import (
	"fmt"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
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
						waitABit()
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
