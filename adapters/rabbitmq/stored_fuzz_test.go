package rabbitmq

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// FuzzStored: whatever a record in a parking or poison queue holds, it is a message, or unreadable
// with its own bytes.
func FuzzStored(f *testing.F) {
	f.Add(parkHeader, "message", dueHeader, "x", []byte("body"))
	f.Add(poisonHeader, poisonPut, entryHeader, "e", []byte(`{"message":{"id":"a"}}`))
	f.Add(poisonHeader, poisonPut, "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string, body []byte) {
		for _, v := range []any{v2, int64(len(v2)), []any{v2}, amqp.Table{v2: v1}, nil} {
			d := &amqp.Delivery{Headers: amqp.Table{n1: v1, n2: v}, Body: body}
			into := bus.Delivery{}
			if decodeParked(d, &into); into.Message == nil {
				t.Error("parked: no message")
			}
			id := entryID(d, 7)
			if e := decodeEntry(d, id, "g"); e.ID != id || id == "" || e.Message == nil {
				t.Errorf("entry %+v", e)
			}
			parkedOf(d, bus.Lane{}, 1)
		}
	})
}
