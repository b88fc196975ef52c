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
		{name: "base64", payload: `{"id":"1","datacontenttype":"image/png","data_base64":"AAEC"}`, want: bus.Message{ID: "1", ContentType: "image/png", Headers: bus.Headers{{Name: "beside", Value: "v"}}, Payload: []byte{0, 1, 2}}},
		{name: "text", payload: `{"id":"1","datacontenttype":"text/plain","data":"a\nb"}`, want: bus.Message{ID: "1", ContentType: "text/plain", Headers: bus.Headers{{Name: "beside", Value: "v"}}, Payload: []byte("a\nb")}},
		{name: "no data", payload: `{"id":"1"}`, want: bus.Message{ID: "1", ContentType: "application/json", Headers: bus.Headers{{Name: "beside", Value: "v"}}}},
		{name: "bad time", payload: `{"id":"1","time":"noon"}`, want: bus.Message{ID: "1", ContentType: "application/json", Headers: bus.Headers{{Name: "time", Value: "noon"}, {Name: "beside", Value: "v"}}}},
		{name: "no json", payload: `<xml>`, err: "invalid character"},
		{name: "no id", payload: `{}`, err: "attribute id is missing"},
		{name: "bad base64", payload: `{"id":"1","data_base64":"?"}`, err: "data_base64"},
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
	ordinary := bus.Message{ContentType: "application/json", Payload: []byte("{")}
	if err := cloudevents.Unwrap(&ordinary); err != nil {
		t.Error(err)
	}
}

// FuzzUnwrap: whatever the payload, no panic, and on an error the message is as it was.
func FuzzUnwrap(f *testing.F) {
	f.Add([]byte(`{"id":"1","data":"x"}`))
	f.Add([]byte(`{"id":null,"time":7,"data_base64":null}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		m := bus.Message{ContentType: "application/cloudevents+json", Payload: payload}
		if err := cloudevents.Unwrap(&m); err != nil && string(m.Payload) != string(payload) {
			t.Error("changed although it failed")
		}
	})
}
