package bus_test

import (
	"errors"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
)

// TestTimesThatCannotTravel: years that RFC 3339 does not have are refused before a broker loses
// them.
func TestTimesThatCannotTravel(t *testing.T) {
	b, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	late := time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, m := range map[string]*bus.Message{
		"time":       {Time: late},
		"early time": {Time: time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)},
		"zone":       {Time: late.Add(-time.Hour).In(time.FixedZone("", 2*3600))},
	} {
		if err := b.PublishMessages(t.Context(), "t", m); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Publish(t.Context(), "t", "x", bus.WithDeliverAt(late)); !errors.Is(err, bus.ErrInvalid) {
		t.Errorf("WithDeliverAt: %v", err)
	}
	if err := b.Publish(t.Context(), "t", "x", bus.WithDeliverAt(late.Add(-time.Second))); err != nil {
		t.Errorf("the last second of 9999: %v", err)
	}
}
