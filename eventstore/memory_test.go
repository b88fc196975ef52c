package eventstore_test

import (
	"testing"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, storetest.Place{Open: func(t testing.TB) *bus.Bus { return openMemory(t, memory.Config{Name: "TestMemory"}) }})
}

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
