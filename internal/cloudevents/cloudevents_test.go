package cloudevents_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/cloudevents"
)

func TestBinaryModeRoundTrip(t *testing.T) {
	m := &bus.Message{ID: "1", Source: "/s", Type: "t", Subject: "u", Time: time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.FixedZone("x", 3600))}
	var got bus.Message
	cloudevents.Each(m, func(name, value string) {
		for _, prefix := range []string{"ce_", "ce-", "cloudEvents_", "cloudEvents:"} {
			attr, ok := cloudevents.Attribute(prefix + strings.ToUpper(name[:1]) + name[1:])
			if !ok || attr != name {
				t.Errorf("%s%s is read as %q, %v", prefix, name, attr, ok)
			}
		}
		cloudevents.Set(&got, name, value)
	})
	got.Time = got.Time.In(m.Time.Location())
	if !reflect.DeepEqual(got, *m) {
		t.Errorf("%#v\n%#v", got, *m)
	}
	if _, ok := cloudevents.Attribute("tenant"); ok {
		t.Error("an ordinary header is taken for an attribute")
	}
}

// event is a payload in structured mode with the required attributes and more.
func event(more string) string {
	return `{"specversion":"1.0","id":"1","source":"/s","type":"t"` + more + `}`
}

func TestStructuredMode(t *testing.T) {
	for _, tc := range []struct {
		name, payload string
		want          bus.Message
		err           string
	}{
		{
			name:    "json data",
			payload: `{"specversion":"1.0","id":"1","source":"/s","type":"t","subject":"u","time":"2026-01-02T03:04:05Z","datacontenttype":"application/json","tenant":"x","level":3,"data":{"a": 1}}`,
			want: bus.Message{
				ID: "1", Source: "/s", Type: "t", Subject: "u", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), ContentType: "application/json",
				Headers: bus.Headers{{Name: "level", Value: "3"}, {Name: "tenant", Value: "x"}, {Name: "beside", Value: "v"}}, Payload: []byte(`{"a": 1}`),
			},
		},
		{name: "base64", payload: event(`,"datacontenttype":"image/png","data_base64":"AAEC"`), want: bus.Message{ID: "1", Source: "/s", Type: "t", ContentType: "image/png", Headers: bus.Headers{{Name: "beside", Value: "v"}}, Payload: []byte{0, 1, 2}}},
		{name: "text", payload: event(`,"datacontenttype":"text/plain","data":"a\nb"`), want: bus.Message{ID: "1", Source: "/s", Type: "t", ContentType: "text/plain", Headers: bus.Headers{{Name: "beside", Value: "v"}}, Payload: []byte("a\nb")}},
		{name: "no data", payload: event(``), want: bus.Message{ID: "1", Source: "/s", Type: "t", ContentType: "application/json", Headers: bus.Headers{{Name: "beside", Value: "v"}}}},
		{name: "bad time", payload: event(`,"time":"noon"`), want: bus.Message{ID: "1", Source: "/s", Type: "t", ContentType: "application/json", Headers: bus.Headers{{Name: "time", Value: "noon"}, {Name: "beside", Value: "v"}}}},
		{
			name:    "null is absent",
			payload: event(`,"subject":null,"time":null,"datacontenttype":null,"tenant":null,"data_base64":null,"data":{"a":1}`),
			want:    bus.Message{ID: "1", Source: "/s", Type: "t", ContentType: "application/json", Headers: bus.Headers{{Name: "beside", Value: "v"}}, Payload: []byte(`{"a":1}`)},
		},
		{name: "null data", payload: event(`,"data":null`), want: bus.Message{ID: "1", Source: "/s", Type: "t", ContentType: "application/json", Headers: bus.Headers{{Name: "beside", Value: "v"}}}},
		{name: "no json", payload: `<xml>`, err: "invalid character"},
		{name: "null", payload: `null`, err: "attribute id is missing"},
		{name: "no id", payload: `{}`, err: "attribute id is missing"},
		{name: "null id", payload: `{"id":null,"specversion":"1.0","source":"/s","type":"t"}`, err: "attribute id is missing"},
		{name: "empty id", payload: `{"id":"","specversion":"1.0","source":"/s","type":"t"}`, err: `attribute id is ""`},
		{name: "number as id", payload: `{"id":7,"specversion":"1.0","source":"/s","type":"t"}`, err: "attribute id is 7"},
		{name: "no source", payload: `{"id":"1","specversion":"1.0","type":"t"}`, err: "attribute source is missing"},
		{name: "no type", payload: `{"id":"1","specversion":"1.0","source":"/s"}`, err: "attribute type is missing"},
		{name: "no version", payload: `{"id":"1","source":"/s","type":"t"}`, err: "attribute specversion is missing"},
		{name: "other version", payload: `{"id":"1","specversion":"0.3","source":"/s","type":"t"}`, err: `specversion is "0.3"`},
		{name: "data twice", payload: event(`,"data":1,"data_base64":"AAEC"`), err: "both data and data_base64"},
		{name: "bad base64", payload: event(`,"data_base64":"?"`), err: "data_base64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := bus.Message{Key: "k", ContentType: "application/cloudevents+json; charset=utf-8", Payload: []byte(tc.payload), Headers: bus.Headers{{Name: "beside", Value: "v"}}}
			before := *m.Clone()
			err := cloudevents.Unwrap(&m)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !reflect.DeepEqual(m, before) {
					t.Errorf("%v, %v", err, m)
				}
				return
			}
			tc.want.Key = "k"
			if err != nil || !reflect.DeepEqual(m, tc.want) {
				t.Errorf("%v\n got %#v\nwant %#v", err, m, tc.want)
			}
		})
	}
	for contentType, structured := range map[string]bool{
		"application/cloudevents+json": true, "Application/CloudEvents+JSON": true, "application/cloudevents+json ; charset=UTF-8": true,
		"application/cloudevents+jsonx": false, "application/cloudevents-batch+json": false, "application/json": false, "": false,
	} {
		m := bus.Message{ContentType: contentType, Payload: []byte(event(``))}
		if err := cloudevents.Unwrap(&m); err != nil || (m.ID == "1") != structured {
			t.Errorf("%q: %v %v", contentType, m, err)
		}
	}
	ordinary := bus.Message{ContentType: "application/json", Payload: []byte("{")}
	if err := cloudevents.Unwrap(&ordinary); err != nil {
		t.Error(err)
	}
}

// FuzzUnwrap: whatever the payload, no panic, and on an error the message is as it was.
func FuzzUnwrap(f *testing.F) {
	f.Add([]byte(`{"id":"1","data":"x"}`))
	f.Add([]byte(`{"id":null,"time":7,"data_base64":null}`))
	f.Add([]byte(event(`,"subject":null,"data":"x"`)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		m := bus.Message{ContentType: "application/cloudevents+json", Payload: payload}
		if err := cloudevents.Unwrap(&m); err != nil && string(m.Payload) != string(payload) {
			t.Error("changed although it failed")
		}
	})
}
