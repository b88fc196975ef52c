package watermill_test

import (
	"io"
	"log"
	"path/filepath"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // database/sql's driver "pgx"
	"go.uber.org/goleak"

	_ "github.com/millrace-go/millrace/adapters/all"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // Watermill's suite tells much
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick")) // sarama's; it never ends
}

// natives are the URLs of Millrace's own drivers, each with a place of its own, which is cleaned
// up.
var natives = []struct {
	name string
	url  func(tb testing.TB) string
}{
	{"memory", func(testing.TB) string { return "memory:" + bus.NewID() }},
	{"sqlite", func(tb testing.TB) string { return "sqlite:" + filepath.Join(tb.TempDir(), "bus.db") }},
	{"kafka", func(tb testing.TB) string { return brokertest.URL(tb, "kafka") }},
	{"rabbitmq", func(tb testing.TB) string { return brokertest.URL(tb, "rabbitmq") }},
	{"postgres", brokertest.Postgres},
	{"mysql", brokertest.MySQL},
}

// name is unique on the servers.
func name(what string) string { return "wm-" + what + "-" + bus.NewID()[24:] }

// open opens a bus that is closed at the end.
func open(t *testing.T, url string) *bus.Bus {
	t.Helper()
	b, err := bus.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return closing(t, b)
}

func closing(t *testing.T, b *bus.Bus) *bus.Bus {
	t.Helper()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}
