package watermill

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestStoredEntries has the stored form of poison logs: an older version reads the entries of this
// version, and this version reads the older ones.
func TestStoredEntries(t *testing.T) {
	const (
		failure = `{"class":"permanent","text":"no \u003cway\u003e","stack":"main.go:1","attempts":3,` +
			`"first":"2026-11-30T12:00:00.123456789Z","last":"2026-11-30T12:00:01.123456789Z","replays":1}`
		message = `"message":{"id":"m1","key":"aw==","type":"t","source":"/s","time":"2026-11-30T12:00:00.123456789Z","payload":"cA=="}}}`
		full    = `{"put":{"id":"e1","topic":"orders","group":"g","handler":"h","lane":1,"position":5,"waits":true,"failure":` + failure +
			`,"host":"host","time":"2026-11-30T12:00:00.123456789Z",` + message
		bare = `{"put":{"id":"e1","topic":"orders","group":"g","lane":0,"position":0,"failure":{"class":"x","text":"y","attempts":0,` +
			`"first":"0001-01-01T00:00:00Z","last":"0001-01-01T00:00:00Z"},"host":"","time":"0001-01-01T00:00:00Z",` + message
	)
	at := time.Date(2026, 11, 30, 12, 0, 0, 123456789, time.UTC)
	m := &bus.Message{ID: "m1", Key: "k", Type: "t", Source: "/s", Time: at, Payload: []byte("p")}
	f := bus.Failure{Class: "permanent", Text: "no <way>", Stack: "main.go:1", Attempts: 3, First: at, Last: at.Add(time.Second), Replays: 1}
	entry := driver.PoisonEntry{ID: "e1", Message: m, Topic: "orders", Group: "g", Handler: "h", Lane: 1, Position: 5, Failure: f, Waits: true, Host: "host", Time: at}
	if text, err := json.Marshal(poisonRecord{Put: storeEntry(entry)}); err != nil || string(text) != full {
		t.Errorf("%s (%v)\nwant\n%s", text, err, full)
	}
	for text, want := range map[string]driver.PoisonEntry{
		full: entry,
		bare: {ID: "e1", Message: m, Topic: "orders", Group: "g", Failure: bus.Failure{Class: "x", Text: "y"}},
	} {
		var r poisonRecord
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		if got := r.Put.entry(); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}
