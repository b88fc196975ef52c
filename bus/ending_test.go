package bus_test

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
)

func TestOnEndTellsEveryEnd(t *testing.T) {
	b := bustest.New(t)
	one, two := &bus.Message{ID: "1"}, &bus.Message{ID: "2"}
	for name, tc := range map[string]struct {
		end  func(*bus.Handling) error
		want []bool
		err  bool
	}{
		"success": {func(h *bus.Handling) error { return engine.Flush(t.Context(), h, nil) }, []bool{true, true}, false},
		"part": {func(h *bus.Handling) error {
			return engine.Flush(t.Context(), h, func(id string) bool { return id == "2" })
		}, []bool{true, false}, false},
		"failure": {func(h *bus.Handling) error { engine.Discard(h); return nil }, []bool{false, false}, false},
		"outputs fail": {func(h *bus.Handling) error {
			if err := bus.Emit(h, "t", &bus.Message{}, bus.WithCause(one)); err != nil {
				t.Fatal(err)
			}
			left, leave := context.WithCancel(t.Context())
			leave() // so the output of the first cannot be published; the second has none
			return engine.Flush(left, h, nil)
		}, []bool{false, true}, true},
	} {
		h := engine.NewBatch(t.Context(), b, bus.Delivery{}, []*bus.Message{one, two})
		var got []bool
		if err := bus.OnEnd(h, func(_ context.Context, succeeded func(*bus.Message) bool) error {
			got = []bool{succeeded(one), succeeded(two)}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := tc.end(h); (err != nil) != tc.err || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, told %v", name, err, got)
		}
	}
	called := false
	direct := engine.NewDirect(t.Context(), b, bus.Delivery{Message: one})
	if err := bus.OnSuccess(direct, func(context.Context) error { called = true; return nil }); err != nil || !called {
		t.Errorf("without a router there is no later: %v", err)
	}
}

func TestSavepoint(t *testing.T) {
	b := bustest.New(t)
	emit := func(ctx context.Context, id string, opts ...bus.PublishOption) {
		if err := bus.Emit(ctx, "out", bus.Message{ID: id, Payload: []byte(`"` + id + `"`)}, opts...); err != nil {
			t.Error(err)
		}
	}
	h := engine.New(t.Context(), b, bus.Delivery{Message: &bus.Message{ID: "m"}})
	emit(h, "before")
	rollback := bus.Savepoint(h)
	emit(h, "failed")
	var ends []string
	note := func(name string) error {
		return bus.OnEnd(h, func(_ context.Context, succeeded func(*bus.Message) bool) error {
			if succeeded(h.Delivery.Message) {
				name += " succeeded"
			}
			ends = append(ends, name)
			return nil
		})
	}
	if err := note("first try"); err != nil {
		t.Error(err)
	}
	rollback()
	emit(h, "again")
	if err := errors.Join(note("second try"), engine.Flush(t.Context(), h, nil)); err != nil {
		t.Error(err)
	}
	rollback() // after the end it has nothing to take back
	if got := bustest.Published[string](t, b, "out"); !slices.Equal(got, []string{"before", "again"}) {
		t.Errorf("published %v", got)
	}
	if !slices.Equal(ends, []string{"first try", "second try succeeded"}) {
		t.Errorf("%v", ends)
	}

	one, two := &bus.Message{ID: "1"}, &bus.Message{ID: "2"}
	batch := engine.NewBatch(t.Context(), b, bus.Delivery{}, []*bus.Message{one, two})
	rollback = bus.Savepoint(batch)
	emit(batch, "of one", bus.WithCause(one))
	emit(batch, "of two", bus.WithCause(two))
	rollback(two)
	if err := engine.Flush(t.Context(), batch, nil); err != nil {
		t.Error(err)
	}
	if got := bustest.Published[string](t, b, "out"); !slices.Equal(got, []string{"before", "again", "of one"}) {
		t.Errorf("published %v", got)
	}
	bus.Savepoint(t.Context())() // outside of a handler
}

func TestWithCauseCarriesTheTrace(t *testing.T) {
	rec := &recorder{}
	b := bus.New(rec)
	cause := &bus.Message{ID: "c", Headers: bus.Headers{{Name: "traceparent", Value: "00-1"}, {Name: "baggage", Value: "b"}}}
	err := b.Publish(t.Context(), "t", &bus.Message{Headers: bus.Headers{{Name: "baggage", Value: "own"}}}, bus.WithCause(cause))
	if err != nil {
		t.Fatal(err)
	}
	if h := rec.msgs[0].Headers; h.Get("traceparent") != "00-1" || !slices.Equal(h.Values("baggage"), []string{"own"}) {
		t.Errorf("%v", h)
	}
}

// TestIgnoredEnding: an ending that fails and says that nothing follows from it is logged, and the
// others see a success.
func TestIgnoredEnding(t *testing.T) {
	b := bustest.New(t)
	broken, worse := errors.New("not remembered"), errors.New("lost")
	for _, fails := range []error{nil, worse} {
		h := engine.New(t.Context(), b, bus.Delivery{Message: &bus.Message{ID: "1"}})
		told := false
		for _, f := range []func(context.Context) error{
			func(context.Context) error { return bus.Ignore(broken) },
			func(context.Context) error { told = true; return fails },
		} {
			if err := bus.OnSuccess(h, f); err != nil {
				t.Fatal(err)
			}
		}
		err := engine.Flush(t.Context(), h, nil)
		if want := cmp.Or(fails, broken); !told || !errors.Is(err, want) || bus.IsIgnored(err) != (fails == nil) {
			t.Errorf("told %v, %v", told, err)
		}
	}
}
