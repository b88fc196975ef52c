package bus_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	_ "github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
)

func TestOnSuccess(t *testing.T) {
	b, err := bus.Open(t.Context(), "memory:")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := bus.OnSuccess(t.Context(), func(context.Context) error { return nil }); err == nil {
		t.Error("registered outside of a handler")
	}
	var calls []string
	note := func(name string, err error) func(context.Context) error {
		return func(context.Context) error {
			calls = append(calls, name)
			return err
		}
	}
	begin := func() *bus.Handling {
		h := bus.NewHandling(t.Context(), b, bus.Delivery{Message: &bus.Message{}})
		if err := errors.Join(bus.OnSuccess(h, note("1", nil)), bus.OnSuccess(h, note("2", errNo)), bus.OnSuccess(h, note("3", nil))); err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := begin()
	h.Discard()
	if len(calls) > 0 {
		t.Errorf("called %v after a failure", calls)
	}
	h = begin()
	if err := h.Flush(t.Context(), nil); !errors.Is(err, errNo) {
		t.Errorf("Flush: %v", err)
	}
	if want := []string{"1", "2"}; !slices.Equal(calls, want) {
		t.Errorf("called %v, want %v", calls, want)
	}
	if err := bus.OnSuccess(h, note("4", nil)); err == nil {
		t.Error("registered after the end")
	}
	h = begin() // nothing is called when publishing fails
	calls = nil
	if err := bus.Emit(h, "t", "x"); err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	if err := h.Flush(t.Context(), nil); err == nil || len(calls) > 0 {
		t.Errorf("%v, called %v", err, calls)
	}
}

var errNo = errors.New("no")
