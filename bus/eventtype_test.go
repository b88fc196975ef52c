package bus_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
)

type (
	pointerType       struct{ N int }
	pointerKey        struct{ N int }
	envelope[T any]   struct{ V T }
	namedEnvelope     envelope[placed]
	envelopeOf[T any] struct{ V T }
	valuedMethods     struct{ N int }
)

func (*pointerType) EventType() string  { return "pointer.type" }
func (*pointerKey) EventKey() string    { return "key" }
func (envelopeOf[T]) EventType() string { return "envelope.of" }
func (valuedMethods) EventType() string { return "valued" }
func (valuedMethods) EventKey() string  { return "key" }

// TestPublishRefusesWhatNoHandlerGets: values whose type or key on the wire would not be those that
// their handlers expect are not published, by any way of publishing.
func TestPublishRefusesWhatNoHandlerGets(t *testing.T) {
	p := bustest.NewRecorder(t)
	for _, tc := range []struct {
		name  string
		event any
		want  string // "" if it is published
		typ   string
	}{
		{"an event with its message", bus.Event[placed]{Message: &bus.Message{}, Value: placed{ID: "1"}}, "bus.Event", ""},
		{"a delivery", bus.Delivery{Message: &bus.Message{}}, "belongs to package bus", ""},
		{"EventType of a pointer", pointerType{1}, "EventType of bus_test.pointerType has a pointer receiver", ""},
		{"EventKey of a pointer", pointerKey{1}, "EventKey of bus_test.pointerKey has a pointer receiver", ""},
		{"a generic type", envelope[placed]{}, "is generic", ""},
		{"a pointer to a generic type", &envelope[placed]{}, "is generic", ""},
		{"a nil pointer", (*valuedMethods)(nil), "the event is a nil *bus_test.valuedMethods", ""},
		{"a nil message", (*bus.Message)(nil), "the message is nil", ""},
		{"a pointer with methods of pointers", &pointerType{1}, "", "pointer.type"},
		{"a generic type with EventType", envelopeOf[int]{}, "", "envelope.of"},
		{"a defined type", namedEnvelope{}, "", "namedEnvelope"},
		{"a pointer with methods of values", &valuedMethods{}, "", "valued"},
		{"no type", map[string]int{"a": 1}, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := p.Handling(t.Context(), &bus.Message{ID: "cause"})
			ways := map[string]error{
				"Publish": p.Publish(ctx, "t", tc.event),
				"Emit":    bus.Emit(ctx, "t", tc.event),
				"All":     bus.PublishAll(ctx, p, "t", []any{tc.event}),
			}
			msgs, err := p.Encode(ctx, []any{tc.event})
			ways["Encode"] = err
			for way, err := range ways {
				switch {
				case tc.want == "" && err != nil:
					t.Errorf("%s: %v", way, err)
				case tc.want != "" && (!errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), tc.want)):
					t.Errorf("%s: %v, want %q", way, err, tc.want)
				}
			}
			if tc.want == "" && msgs[0].Type != tc.typ {
				t.Errorf("the type is %q, want %q", msgs[0].Type, tc.typ)
			}
		})
	}
}

// A snapshot is no event: its type needs no name.
func TestMarshalTakesAnyType(t *testing.T) {
	b := bustest.New(t)
	data, contentType, err := engine.Marshal(b, envelope[int]{7})
	if err != nil || string(data) != `{"V":7}` || contentType != "application/json" {
		t.Errorf("%s %s %v", data, contentType, err)
	}
}
