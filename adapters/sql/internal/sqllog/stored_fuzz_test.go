package sqllog

import (
	"testing"

	"github.com/millrace-go/millrace/bus"
)

// FuzzStored: whatever a row in a parking or poison table holds, it is a message or an error.
func FuzzStored(f *testing.F) {
	f.Add([]byte(`{"id":"e","message":{"id":"a","key":"aw==","headers":[["bg==","dg=="]]}}`))
	f.Add([]byte(`{"message":null}`))
	f.Add([]byte(`{"message":{"time":"9999-12-31T23:59:59Z"},"attempt":-1}`))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if e, err := decodeEntry(doc); err == nil && e.Message == nil {
			t.Error("entry: neither a message nor an error")
		}
		if d, err := decodeParked(doc, "t", bus.Token{}); err == nil && d.Message == nil {
			t.Error("parked: neither a message nor an error")
		}
		parkedID(doc)
	})
}
