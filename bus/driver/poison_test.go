package driver_test

import (
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestNaturalID: an entry keeps its natural id in another delivery of the same message, and has another one if anything of the message differs.
func TestNaturalID(t *testing.T) {
	entry := func(change func(e *driver.PoisonEntry)) string {
		e := driver.PoisonEntry{
			ID: bus.NewID(), Topic: "t", Group: "g", Handler: "h", Lane: 1, Position: 2, Host: "here", Time: time.Now(),
			Message: &bus.Message{
				ID: "id", Key: "key", Type: "type", Source: "source", Subject: "subject", ContentType: "content", Time: time.Unix(1, 2),
				Headers: bus.Headers{{Name: "a", Value: "b"}, {Name: "c"}}, Payload: []byte{},
			},
		}
		if change != nil {
			change(&e)
		}
		return e.NaturalID()
	}
	want := entry(nil)
	for name, change := range map[string]func(e *driver.PoisonEntry){
		"another delivery": func(e *driver.PoisonEntry) { e.Lane, e.Position, e.Host, e.Handler, e.Waits = 2, 1, "there", "i", true },
		"another failure":  func(e *driver.PoisonEntry) { e.Failure = bus.Failure{Class: "c", Text: "t", Attempts: 3} },
		"another zone":     func(e *driver.PoisonEntry) { e.Message.Time = e.Message.Time.UTC() },
	} {
		if got := entry(change); got != want {
			t.Errorf("%s: the id is %s, not %s", name, got, want)
		}
	}
	seen := map[string]string{want: "nothing"}
	for name, change := range map[string]func(e *driver.PoisonEntry){
		"replays":       func(e *driver.PoisonEntry) { e.Failure.Replays = 1 },
		"topic":         func(e *driver.PoisonEntry) { e.Topic = "u" },
		"id":            func(e *driver.PoisonEntry) { e.Message.ID = "i" },
		"key":           func(e *driver.PoisonEntry) { e.Message.Key = "k" },
		"id and key":    func(e *driver.PoisonEntry) { e.Message.ID, e.Message.Key = "idk", "ey" },
		"type":          func(e *driver.PoisonEntry) { e.Message.Type = "" },
		"source":        func(e *driver.PoisonEntry) { e.Message.Source = "" },
		"subject":       func(e *driver.PoisonEntry) { e.Message.Subject = "" },
		"content type":  func(e *driver.PoisonEntry) { e.Message.ContentType = "" },
		"time":          func(e *driver.PoisonEntry) { e.Message.Time = time.Unix(1, 3) },
		"no header":     func(e *driver.PoisonEntry) { e.Message.Headers = nil },
		"header's name": func(e *driver.PoisonEntry) { e.Message.Headers[1].Name = "d" },
		"value":         func(e *driver.PoisonEntry) { e.Message.Headers[0].Value = "" },
		"order":         func(e *driver.PoisonEntry) { h := e.Message.Headers; h[0], h[1] = h[1], h[0] },
		"payload":       func(e *driver.PoisonEntry) { e.Message.Payload = []byte{1} },
		"tombstone":     func(e *driver.PoisonEntry) { e.Message.Payload = nil },
	} {
		got := entry(change)
		if other, ok := seen[got]; ok {
			t.Errorf("a change of %s and one of %s give one id", name, other)
		}
		seen[got] = name
	}
}
