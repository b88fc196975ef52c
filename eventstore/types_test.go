package eventstore_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
)

type orderEvent interface{ EventType() string }

type (
	added     struct{ Product string }
	paid      struct{ Cents int64 }
	addedV1   struct{ ProductID string }
	addedV2   struct{ Name string }
	express   struct{ Product, Payment string }
	nameless  struct{}
	unrelated struct{}
)

func (added) EventType() string     { return "order.added.v3" }
func (*paid) EventType() string     { return "order.paid.v1" }
func (addedV1) EventType() string   { return "ItemAdded" }
func (addedV2) EventType() string   { return "order.added.v2" }
func (express) EventType() string   { return "order.express" }
func (unrelated) EventType() string { return "unrelated" }

func family() *eventstore.Types[orderEvent] {
	return eventstore.TypesOf[orderEvent](added{}, &paid{}).With(
		eventstore.Upcast(func(e addedV1) (addedV2, error) {
			if e.ProductID == "" {
				return addedV2{}, errors.New("no product")
			}
			return addedV2{strings.ToLower(e.ProductID)}, nil
		}),
		eventstore.Upcast(func(e addedV2) (added, error) { return added{e.Name}, nil }),
		eventstore.Split(func(e express) ([]orderEvent, error) { return []orderEvent{added{e.Product}, &paid{1}}, nil }),
		eventstore.Renamed[*paid]("PaymentProcessed"),
		eventstore.Ignored("order.viewed"))
}

func TestDecode(t *testing.T) {
	types := family()
	if err := types.Check(); err != nil {
		t.Fatal(err)
	}
	s, err := eventstore.Open(t.Context(), openMemory(t, memory.Config{}), "events")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		event any
		want  string
	}{
		{added{"tea"}, "eventstore_test.added tea"},
		{&paid{5}, "*eventstore_test.paid 5"},
		{addedV1{"TEA"}, "eventstore_test.added tea"},
		{addedV2{"Tea"}, "eventstore_test.added Tea"},
		{express{"tea", "P1"}, "eventstore_test.added tea, *eventstore_test.paid 1"},
		{&bus.Message{Type: "PaymentProcessed", Payload: []byte(`{"Cents":7}`)}, "*eventstore_test.paid 7"},
		{&bus.Message{Type: "order.viewed", Payload: []byte("no JSON")}, "<nil>"},
		{addedV1{}, "no product"},
		{unrelated{}, "no type for the event"},
		{&bus.Message{Type: "order.added.v3", Payload: []byte("no JSON")}, "decode event"},
	} {
		if _, err := s.Append(t.Context(), "a", eventstore.Any, tc.event); err != nil {
			t.Fatal(err)
		}
		for e, err := range s.Back(t.Context(), "a") {
			if err != nil {
				t.Fatal(err)
			}
			got, err := types.Decode(e)
			if text := describe(got, err); !strings.Contains(text, tc.want) {
				t.Errorf("%T: %s, want %s", tc.event, text, tc.want)
			}
			break
		}
	}
	if err := s.CloseStream(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for e, err := range s.Back(t.Context(), "a") {
		if err != nil {
			t.Fatal(err)
		}
		if got, err := types.Decode(e); len(got) != 0 || err != nil {
			t.Errorf("the end of a stream: %v, %v", got, err)
		}
		break
	}
}

// describe is events in short: their types and contents.
func describe(events []orderEvent, err error) string {
	var texts []string
	for _, e := range events {
		switch e := e.(type) {
		case added:
			texts = append(texts, fmt.Sprintf("%T %s", e, e.Product))
		case *paid:
			texts = append(texts, fmt.Sprintf("%T %d", e, e.Cents))
		}
	}
	return fmt.Sprintf("%s %v", strings.Join(texts, ", "), err)
}

func TestCheck(t *testing.T) {
	same := func(e addedV1) (addedV1, error) { return e, nil }
	for _, tc := range []struct {
		types *eventstore.Types[any]
		want  string
	}{
		{eventstore.TypesOf[any](nameless{}), "EventType"},
		{eventstore.TypesOf[any](nil), "nil"},
		{eventstore.TypesOf[any](added{}, added{}), "twice"},
		{eventstore.TypesOf[any](added{}).With(eventstore.Renamed[added]("order.added.v3")), "twice"},
		{eventstore.TypesOf[any](added{}).With(eventstore.Ignored("x"), eventstore.Renamed[added]("x")), "twice"},
		{eventstore.TypesOf[any](added{}).With(eventstore.Renamed[unrelated]("x")), "no member"},
		{eventstore.TypesOf[any](added{}).With(eventstore.Upcast(func(addedV1) (addedV2, error) { return addedV2{}, nil })), "no member"},
		{eventstore.TypesOf[any](added{}).With(eventstore.Upcast(same)), "circle"},
		{eventstore.TypesOf[any](added{}).With(eventstore.Upcast(func(e added) (addedV1, error) { return addedV1{}, nil })), "two rules"},
		{eventstore.TypesOf[any](added{}).With(eventstore.Ignored(eventstore.TypeClosed)), "twice"},
	} {
		if err := tc.types.Check(); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v, want one with %q", err, tc.want)
		}
	}
}
