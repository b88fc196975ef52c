package bus_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	_ "github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
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
		h := engine.New(t.Context(), b, bus.Delivery{Message: &bus.Message{}})
		if err := errors.Join(bus.OnSuccess(h, note("1", nil)), bus.OnSuccess(h, note("2", errNo)), bus.OnSuccess(h, note("3", nil))); err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := begin()
	engine.Discard(h)
	if len(calls) > 0 {
		t.Errorf("called %v after a failure", calls)
	}
	h = begin()
	if err := engine.Flush(t.Context(), h, nil); !errors.Is(err, errNo) {
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
	if err := engine.Flush(t.Context(), h, nil); err == nil || len(calls) > 0 {
		t.Errorf("%v, called %v", err, calls)
	}
}

var errNo = errors.New("no")

// TestInnerHandling: messages emitted under it go through the other bus, and OnSuccess waits for
// the whole handler.
func TestInnerHandling(t *testing.T) {
	outside, inside := bustest.NewRecorder(t), bustest.NewRecorder(t)
	outer := engine.New(t.Context(), outside.Bus, bus.Delivery{Message: &bus.Message{ID: "1"}, Group: "g"})
	inner := engine.NewInner(outer, inside.Bus)
	if d := bus.DeliveryFrom(inner); d.ID != "1" || d.Group != "g" {
		t.Errorf("%+v", d)
	}
	succeeded := false
	if err := bus.OnSuccess(inner, func(context.Context) error { succeeded = true; return nil }); err != nil {
		t.Error(err)
	}
	if err := bus.Emit(inner, "t", 1); err != nil {
		t.Error(err)
	}
	if err := engine.Flush(inner, inner, nil); err != nil || succeeded {
		t.Errorf("%v, succeeded %v", err, succeeded)
	}
	if err := bus.Emit(inner, "t", 2); err == nil {
		t.Error("emitted after the end")
	}
	if err := engine.Flush(outer, outer, nil); err != nil || !succeeded {
		t.Errorf("%v, succeeded %v", err, succeeded)
	}
	if in, out := bustest.Published[int](t, inside, "t"), bustest.Published[int](t, outside, "t"); len(in) != 1 || len(out) != 0 {
		t.Errorf("inside %v, outside %v", in, out)
	}
}
