package bus_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
)

func TestEncode(t *testing.T) {
	b, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx := bus.ContextWithHeaders(t.Context(), bus.Header{Name: "call", Value: "7"})
	given := &bus.Message{ID: "mine", Type: "given", Headers: bus.Headers{{Name: "call", Value: "8"}}}
	msgs, err := b.Encode(ctx, []any{placed{ID: "o-1"}, given}, bus.WithKey("k"))
	if err != nil || len(msgs) != 2 {
		t.Fatalf("%v, %v", msgs, err)
	}
	m := msgs[0]
	if m.ID == "" || m.Time.IsZero() || m.Source == "" || m.Key != "k" || m.ContentType != bus.JSON.ContentType() ||
		m.Headers.Get("call") != "7" || !strings.Contains(string(m.Payload), "o-1") {
		t.Errorf("encoded %+v", m)
	}
	if m := msgs[1]; m == given || m.ID != "mine" || m.Key != "k" || m.Headers.Get("call") != "8" {
		t.Errorf("encoded %+v", m)
	}
	if given.Key != "" || !given.Time.IsZero() {
		t.Errorf("the caller's message has become %+v", given)
	}
	if msgs, err := b.Encode(ctx, nil); err != nil || len(msgs) != 0 {
		t.Errorf("of nothing: %v, %v", msgs, err)
	}
	for _, wrong := range []any{make(chan int), &bus.Message{ID: strings.Repeat("a", 256)}} {
		_, err := b.Encode(ctx, []any{placed{ID: "o-1"}, wrong})
		if !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "event 1") {
			t.Errorf("%T: %v", wrong, err)
		}
	}
}
