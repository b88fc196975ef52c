package all_test

import (
	"path/filepath"
	"testing"

	"github.com/millrace-go/millrace/conformance"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
)

// TestConformance runs the suite against the drivers, on the real brokers. RabbitMQ's is in its own package, where it
// deletes the many queues afterwards, and memory's in the suite's.
func TestConformance(t *testing.T) {
	testlog.Expect(t, "") // most checks make handlers fail; those of ways/* read a log of their own
	run := func(t *testing.T, url string, raw rawPoison) {
		t.Helper()
		conformance.RunWith(t, conformance.URL(url), conformance.Options{RawPoison: raw})
	}
	t.Run("sqlite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "bus.db")
		raw := rawRow(t, "sqlite", "file:"+path+"?_busy_timeout=30000", "INSERT INTO millrace_poison (grp, id, entry) VALUES (?, 'raw', ?)")
		run(t, "sqlite:"+path, raw)
	})
	t.Run("kafka", func(t *testing.T) { run(t, brokertest.URL(t, "kafka"), rawKafka) })
	t.Run("postgres", func(t *testing.T) {
		url := brokertest.URL(t, "postgres")
		run(t, url, rawRow(t, "pgx", url, "INSERT INTO millrace.poison (grp, id, entry) VALUES ($1, 'raw', $2)"))
	})
	t.Run("mysql", func(t *testing.T) {
		url := brokertest.URL(t, "mysql")
		run(t, url, rawRow(t, "mysql", brokertest.MySQLDSN(url), "INSERT INTO millrace_poison (grp, id, entry) VALUES (?, 'raw', ?)"))
	})
}
