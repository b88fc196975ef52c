package eventstore_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, storetest.Place{Open: func(t testing.TB) *bus.Bus { return openMemory(t, memory.Config{Name: "TestMemory"}) }})
}

// TestNoTransactions: memory says that it has none.
func TestNoTransactions(t *testing.T) {
	s, err := eventstore.Open(t.Context(), openMemory(t, memory.Config{}), "events")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.In(nil).Append(t.Context(), "a", eventstore.New, added{"tea"})
	if !errors.Is(err, bus.ErrUnsupported) || !bus.IsDefinite(err) {
		t.Errorf("error %v", err)
	}
}

// TestNoHost: a broker that cannot compare versions is refused, and the error says why.
func TestNoHost(t *testing.T) {
	b := bus.New(plain{openMemory(t, memory.Config{}).Driver()})
	_, err := eventstore.Open(t.Context(), b, "events")
	if !errors.Is(err, bus.ErrUnsupported) || !strings.Contains(err.Error(), "cannot compare") {
		t.Errorf("error %v", err)
	}
}

// plain is a driver without abilities.
type plain struct{ bus.Driver }

func openMemory(t testing.TB, c memory.Config) *bus.Bus {
	t.Helper()
	b, err := memory.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func BenchmarkMemory(b *testing.B) { storetest.Bench(b, openMemory(b, memory.Config{})) }
