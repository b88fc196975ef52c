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
	t.Run("sqlite", func(t *testing.T) {
		conformance.Run(t, conformance.URL("sqlite:"+filepath.Join(t.TempDir(), "bus.db")))
	})
	for _, name := range []string{"kafka", "postgres", "mysql"} {
		t.Run(name, func(t *testing.T) { conformance.Run(t, conformance.URL(brokertest.URL(t, name))) })
	}
}
