package kafka

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// FuzzStored: whatever a record in a parking or poison topic holds, it is a message, or unreadable
// with its own bytes.
func FuzzStored(f *testing.F) {
	f.Add([]byte("k"), []byte("v"), "ce_id", []byte("x"), []byte(`{"attempt":2}`))
	f.Add([]byte(nil), []byte(nil), headerKey, []byte("k"), []byte(`{`))
	f.Add([]byte("k"), []byte("v"), headerTombstone, []byte("1"), []byte(`{"time":1}`))
	f.Add([]byte("k"), []byte("v"), headerFacts, []byte(`{"attempt":-1}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, key, value []byte, name string, text, facts []byte) {
		for _, headers := range [][]kgo.RecordHeader{
			{{Key: name, Value: text}},
			{{Key: name, Value: text}, {Key: headerFacts, Value: facts}},
			{{Key: headerFacts, Value: facts}, {Key: name, Value: text}},
		} {
			r := &kgo.Record{Key: key, Value: value, Headers: headers}
			e := (&poisonStore{group: "g"}).decodeEntry(r)
			if e.ID != string(key) || e.Message == nil {
				t.Errorf("entry %+v", e)
			}
			if e.Failure.Class == driver.Unreadable && e.Failure.Text != "" && string(e.Message.Payload) != string(value) {
				t.Errorf("unreadable, with the bytes %q, want %q", e.Message.Payload, value)
			}
			if d, err := decodeParked(r, &bus.Subscription{}, bus.Token{}); err == nil && d.Message == nil {
				t.Error("parked: neither a message nor an error")
			}
			factsOf(r)
			commandOf(r)
		}
	})
}
