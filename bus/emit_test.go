package bus_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
)

// An output needs a cause that is a message of the batch: otherwise its success depends on no known
// message.
func TestForeignCauseInABatch(t *testing.T) {
	b := bustest.New(t)
	var ms []*bus.Message
	for i := range 3 {
		ms = append(ms, &bus.Message{ID: fmt.Sprint(i)})
	}
	h := engine.NewBatch(t.Context(), b, bus.Delivery{}, ms)
	if err := bus.Emit(h, "out", "stray", bus.WithCause(&bus.Message{ID: "elsewhere"})); !errors.Is(err, bus.ErrInvalid) {
		t.Errorf("emitted with a foreign cause: %v", err)
	}
	for _, i := range []int{0, 0, 2, 1} {
		if err := bus.Emit(h, "out", fmt.Sprint(i), bus.WithCause(ms[i])); err != nil {
			t.Error(err)
		}
	}
	if err := engine.Flush(t.Context(), h, func(id string) bool { return id == "2" }); err != nil {
		t.Error(err)
	}
	if got := bustest.Published[string](t, b, "out"); !slices.Equal(got, []string{"0", "0", "1"}) {
		t.Errorf("published %v", got)
	}
}

// One call emits all of its messages or none, and its error is the one that Publisher promises.
func TestEmitsAllOrNone(t *testing.T) {
	b := bustest.New(t)
	one := &bus.Message{ID: "1"}
	of := func(cause string) *bus.Message {
		return &bus.Message{Payload: []byte(`"` + cause + `"`), Headers: bus.Headers{{Name: bus.HeaderCausationID, Value: cause}}}
	}
	h := engine.NewBatch(t.Context(), b, bus.Delivery{}, []*bus.Message{one})
	for name, bad := range map[string]*bus.Message{"foreign": of("elsewhere"), "none": {}, "invalid": {ID: "a\nb"}, "nil": nil} {
		var pe *bus.PublishError
		if err := bus.Emitter(h).PublishMessages(t.Context(), "out", of("1"), bad); !errors.As(err, &pe) || len(pe.Errs) != 2 || pe.Errs[0] == nil || pe.Errs[1] == nil {
			t.Errorf("%s: %v, want a *PublishError in which both messages fail", name, err)
		}
	}
	if err := engine.Flush(t.Context(), h, nil); err != nil {
		t.Error(err)
	}
	if got := bustest.Published[string](t, b, "out"); len(got) > 0 {
		t.Errorf("published %v", got)
	}
	var pe *bus.PublishError
	if err := bus.Emit(h, "out", "late"); err == nil || errors.As(err, &pe) {
		t.Errorf("of a single event it is the error itself: %v", err)
	}
}
