package sqllog

import (
	"reflect"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestStoredDocuments holds documents as tables store them: an older version reads the documents
// that this version writes, and the other way round.
func TestStoredDocuments(t *testing.T) {
	const (
		failure = `{"class":"permanent","text":"no \u003cway\u003e","stack":"main.go:1","attempts":3,` +
			`"first":"2026-11-30T12:00:00.123456789Z","last":"2026-11-30T12:00:01.123456789Z","replays":1}`
		message = `"message":{"id":"m1","key":"aw==","type":"t","source":"/s","subject":"","time":"2026-11-30T12:00:00.123456789Z",` +
			`"contenttype":"","headers":null,"payload":"cA=="}}`
	)
	at := time.Date(2026, 11, 30, 12, 0, 0, 123456789, time.UTC)
	m := &bus.Message{ID: "m1", Key: "k", Type: "t", Source: "/s", Time: at, Payload: []byte("p")}
	f := bus.Failure{Class: "permanent", Text: "no <way>", Stack: "main.go:1", Attempts: 3, First: at, Last: at.Add(time.Second), Replays: 1}
	for want, d := range map[string]bus.Delivery{
		`{"handler":"h","attempt":2,"firstseen":"2026-11-30T12:00:00.123456789Z","failure":` + failure + `,` + message: {
			Message: m, Handler: "h", Attempt: 2, FirstSeen: at, Failure: &f,
		},
		`{"attempt":0,"firstseen":"0001-01-01T00:00:00Z",` + message: {Message: m},
	} {
		if doc, err := encodeParked(&driver.Parking{Delivery: d}); err != nil || doc != want {
			t.Errorf("%s (%v)\nwant\n%s", doc, err, want)
		}
		if got, err := decodeParked([]byte(want), "", bus.Token{}); err != nil || !reflect.DeepEqual(got, d) {
			t.Errorf("%+v (%v), want %+v", got, err, d)
		}
	}
	for want, e := range map[string]driver.PoisonEntry{
		`{"id":"e1","topic":"orders","group":"g","handler":"h","lane":1,"position":5,"waits":true,"failure":` + failure +
			`,"host":"host","time":"2026-11-30T12:00:00.123456789Z",` + message: {
			ID: "e1", Message: m, Topic: "orders", Group: "g", Handler: "h", Lane: 1, Position: 5, Failure: f, Waits: true, Host: "host", Time: at,
		},
		`{"id":"e1","topic":"orders","group":"g","handler":"","lane":0,"position":0,"failure":{"class":"x","text":"y","attempts":0,` +
			`"first":"0001-01-01T00:00:00Z","last":"0001-01-01T00:00:00Z"},"host":"","time":"0001-01-01T00:00:00Z",` + message: {
			ID: "e1", Message: m, Topic: "orders", Group: "g", Failure: bus.Failure{Class: "x", Text: "y"},
		},
	} {
		if doc, err := encodeEntry(&e); err != nil || string(doc) != want {
			t.Errorf("%s (%v)\nwant\n%s", doc, err, want)
		}
		if got, err := decodeEntry([]byte(want)); err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%+v (%v), want %+v", got, err, e)
		}
	}
}
