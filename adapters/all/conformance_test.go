package all_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace-go/millrace/conformance"
)

// TestConformance runs the suite against the drivers, on the real brokers. RabbitMQ's is in its own package, where it
// deletes the many queues afterwards, and memory's in the suite's.
func TestConformance(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		conformance.Run(t, conformance.URL("sqlite:"+filepath.Join(t.TempDir(), "bus.db")))
	})
	for name, variable := range map[string]string{
		"kafka":    "MILLRACE_KAFKA_URL",
		"postgres": "MILLRACE_POSTGRES_URL",
		"mysql":    "MILLRACE_MYSQL_URL",
	} {
		t.Run(name, func(t *testing.T) {
			url := os.Getenv(variable)
			switch {
			case testing.Short():
				t.Skip("needs a broker")
			case url == "" && os.Getenv("MILLRACE_REQUIRE_BROKERS") != "":
				t.Fatalf("%s is not set", variable)
			case url == "":
				t.Skipf("%s is not set: run `make brokers` and `. .brokers/env`", variable)
			}
			conformance.Run(t, conformance.URL(url))
		})
	}
}
