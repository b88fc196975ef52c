package watermill_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// appended is a pub/sub of one topic. A subscriber receives all messages that are there.
type appended struct{ messages []*message.Message }

// Publish implements message.Publisher.
func (a *appended) Publish(_ string, ms ...*message.Message) error {
	a.messages = append(a.messages, ms...)
	return nil
}

// Subscribe implements message.Subscriber.
func (a *appended) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	out := make(chan *message.Message, len(a.messages))
	for _, m := range a.messages {
		out <- m
	}
	return out, nil
}

// Close implements message.Publisher and message.Subscriber.
func (*appended) Close() error { return nil }

// TestUnreadablePoison: another program's message in a poison queue's topic is an entry that can be
// viewed and removed. It does not hide the other entries.
func TestUnreadablePoison(t *testing.T) {
	l := &appended{}
	b := closing(t, bus.New(watermill.Driver(l, func(string) (message.Subscriber, error) { return l, nil }, watermill.Config{
		Reader: func() (message.Subscriber, error) { return l, nil },
	})))
	publish(t, b, "g.poison", &bus.Message{ID: "text", Payload: []byte("no record")}, &bus.Message{ID: "json", Payload: []byte(`{"foreign":1}`)})
	q, err := driver.Of(b).Poison(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Put(t.Context(), driver.PoisonEntry{ID: "entry", Group: "g", Message: &bus.Message{ID: "1"}}); err != nil {
		t.Fatal(err)
	}
	list := func() (entries []driver.PoisonEntry) {
		t.Helper()
		for e, err := range q.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, e)
		}
		return entries
	}
	entries := list()
	if len(entries) != 3 || entries[2].ID != "entry" {
		t.Fatalf("%+v", entries)
	}
	for i, payload := range []string{"no record", `{"foreign":1}`} {
		if e := entries[i]; e.Failure.Class != driver.Unreadable || e.Group != "g" || string(e.Message.Payload) != payload || e.ID == "" {
			t.Errorf("%+v", e)
		}
		if err := q.Remove(t.Context(), entries[i].ID); err != nil {
			t.Fatal(err)
		}
	}
	if entries := list(); len(entries) != 1 || entries[0].ID != "entry" {
		t.Errorf("after the removal %+v", entries)
	}
}
