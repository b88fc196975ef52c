package watermill_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
)

func messages() []*bus.Message {
	at := time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC)
	return []*bus.Message{
		{ID: "full", Key: "k", Type: "t", Source: "/s", Subject: "u", Time: at, ContentType: "application/json", Payload: []byte(`{}`), Headers: bus.Headers{{Name: "a", Value: "1"}, {Name: "b", Value: "Ω"}}},
		{ID: "tombstone"},
		{ID: "empty", Payload: []byte{}},
		{ID: "binary", Key: "\xff\x00", Payload: []byte{0, 0xff}, Headers: bus.Headers{{Name: "a", Value: "\xfe\x00"}}},
		{ID: "repeats", Headers: bus.Headers{{Name: "z", Value: "1"}, {Name: "a", Value: "2"}, {Name: "z", Value: "3"}, {Name: bus.HeaderCausationID, Value: "4"}}},
		{ID: "extensions", Headers: bus.Headers{{Name: "ch", Value: "1"}, {Name: bus.HeaderCorrelationID, Value: "2"}, {Name: "traceparent", Value: "3"}}},
	}
}

func TestWatermillAndBack(t *testing.T) {
	for _, m := range messages() {
		w := watermill.ToWatermill(m)
		if w.UUID != m.ID {
			t.Errorf("%s: UUID %q", m.ID, w.UUID)
		}
		for _, h := range m.Headers {
			if v, ok := w.Metadata[h.Name]; h.Name != bus.HeaderCorrelationID && h.Name != bus.HeaderCausationID && !ok {
				t.Errorf("%s: a Watermill service misses header %s: %q", m.ID, h.Name, v)
			}
		}
		if got := watermill.FromWatermill(w); !reflect.DeepEqual(got, m) {
			t.Errorf("%s:\n got %#v\nwant %#v", m.ID, got, m)
		}
	}
}

// TestHeadersAddedOnTheWay: a relay of Watermill's may add metadata, and give the message another UUID.
func TestHeadersAddedOnTheWay(t *testing.T) {
	for _, m := range messages() {
		w := watermill.ToWatermill(m)
		w.UUID = "another"
		w.Metadata.Set("zz-added", "x")
		got := watermill.FromWatermill(w)
		want := m.Clone()
		want.ID = "another"
		want.Headers.Add("zz-added", "x")
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %#v\nwant %#v", m.ID, got, want)
		}
	}
}

// TestRedelivered: a message that comes again over watermill-amqp is the same message.
func TestRedelivered(t *testing.T) {
	for _, m := range messages() {
		w := watermill.ToWatermill(m)
		w.Metadata.Set("_watermill_amqp_redelivered", "true")
		if got := watermill.FromWatermill(w); !reflect.DeepEqual(got, m) {
			t.Errorf("%s:\n got %#v\nwant %#v", m.ID, got, m)
		}
	}
}
