package kafka

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/cloudevents"
)

// TestAttributes compares the attributes that encode writes with cloudevents.Each.
func TestAttributes(t *testing.T) {
	now := time.Now()
	for _, m := range []*bus.Message{
		{ID: "1", Source: "/s", Time: now},
		{ID: "1", Source: "/s", Time: now, Type: "t", Subject: "u", ContentType: "c"},
	} {
		want := map[string]string{}
		cloudevents.Each(m, func(name, value string) { want["ce_"+name] = value })
		if m.ContentType != "" {
			want["content-type"] = m.ContentType
		}
		records, _ := encode("t", []*bus.Message{m})
		got := map[string]string{}
		for _, h := range records[0].Headers {
			got[h.Key] = string(h.Value)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// decodeAll decodes as Receive does.
func decodeAll(records ...*kgo.Record) []*bus.Message {
	batch := make([]accepted, len(records))
	for i, r := range records {
		batch[i].record = r
	}
	var d decoder
	var ms []*bus.Message
	for i, reserved := 0, 0; i < len(batch); i++ {
		if reserved == 0 {
			reserved = d.reserve(batch[i:])
		}
		reserved--
		ms = append(ms, d.message(batch[i].record))
	}
	return ms
}

// TestSlabs sends messages of all sizes through encoder and decoder, so that slabs end at every
// place.
func TestSlabs(t *testing.T) {
	when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	var sent []*bus.Message
	for i := range 500 {
		m := &bus.Message{ID: fmt.Sprint("id-", i), Source: "/s", Type: fmt.Sprint("type-", i%7), Time: when.Add(time.Duration(i/3) * time.Second)}
		if i%5 > 0 {
			m.Key = fmt.Sprint("key-", i)
		}
		if i%3 > 0 {
			m.Payload = make([]byte, i*i%5000)
		}
		for j := range i % 4 {
			m.Headers.Add(fmt.Sprint("h", j%2), fmt.Sprint("v-", i, "-", j))
		}
		sent = append(sent, m)
	}
	records, _ := encode("t", sent)
	in := make([]*kgo.Record, len(records))
	for i := range records {
		in[i] = &records[i]
	}
	got := decodeAll(in...)
	for i, m := range got {
		if !reflect.DeepEqual(m, sent[i]) {
			t.Fatalf("message %d is\n%#v, want\n%#v", i, m, sent[i])
		}
		for j := range m.Payload { // a message that wrote into its neighbour would show in the comparison of the next
			m.Payload[j] = 0xff
		}
		_ = append(m.Payload, 0xff)
	}
}

func TestForeignRecords(t *testing.T) {
	at := time.UnixMilli(1700000000123)
	header := func(name, value string) kgo.RecordHeader {
		return kgo.RecordHeader{Key: name, Value: []byte(value)}
	}
	for _, tc := range []struct {
		name   string
		record kgo.Record
		want   bus.Message
	}{
		{
			"bare",
			kgo.Record{Topic: "orders", Partition: 3, Offset: 42, Timestamp: at, Key: []byte("k"), Value: []byte("v")},
			bus.Message{ID: "orders/3/42", Key: "k", Time: at, Payload: []byte("v")},
		},
		{
			"empty key and value",
			kgo.Record{Topic: "orders", Timestamp: at, Key: []byte{}, Value: []byte{}},
			bus.Message{ID: "orders/0/0", Time: at, Payload: []byte{}},
		},
		{
			"its own headers",
			kgo.Record{Topic: "orders", Timestamp: at, Headers: []kgo.RecordHeader{header("x", "1"), {Key: "null"}, header("x", "\xff"), header("content-type", "a/b")}},
			bus.Message{ID: "orders/0/0", Time: at, ContentType: "a/b", Headers: bus.Headers{{Name: "x", Value: "1"}, {Name: "null"}, {Name: "x", Value: "\xff"}}},
		},
		{
			"other spellings",
			kgo.Record{Timestamp: at, Headers: []kgo.RecordHeader{header("ce-id", "1"), header("cloudEvents:type", "t"), header("ce_DataContentType", "c/d"), header("ce_tenant", "x")}},
			bus.Message{ID: "1", Type: "t", ContentType: "c/d", Time: at, Headers: bus.Headers{{Name: "tenant", Value: "x"}}},
		},
		{
			"a time that is none",
			kgo.Record{Timestamp: at, Headers: []kgo.RecordHeader{header("ce_id", "1"), header("ce_time", "noon")}},
			bus.Message{ID: "1", Time: at, Headers: bus.Headers{{Name: "time", Value: "noon"}}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := decodeAll(&tc.record)[0]
			if !got.Time.Equal(tc.want.Time) {
				t.Errorf("time %v, want %v", got.Time, tc.want.Time)
			}
			got.Time = tc.want.Time
			if !reflect.DeepEqual(*got, tc.want) {
				t.Errorf("got\n%#v, want\n%#v", *got, tc.want)
			}
		})
	}
}

// FuzzDecode: whatever a record holds, a message comes of it, and nothing of it is lost.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("k"), []byte("v"), "ce_time", []byte("x"))
	f.Add([]byte{}, []byte(nil), "ce_", []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte, name string, text []byte) {
		r := &kgo.Record{Key: key, Value: value, Headers: []kgo.RecordHeader{{Key: name, Value: text}, {Key: "after", Value: text}}}
		m := decodeAll(r)[0]
		if m.Key != string(key) || string(m.Payload) != string(value) || m.ID == "" && name != headerID && name != "ce_ID" {
			t.Errorf("%#v", m)
		}
		if m.Headers.Get("after") != string(text) {
			t.Errorf("the header behind %q is gone: %v", name, m.Headers)
		}
	})
}
