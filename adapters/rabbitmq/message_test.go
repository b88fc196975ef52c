package rabbitmq

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Every field of a message comes back as it was, through the real broker.
func TestRoundTrip(t *testing.T) {
	now := time.Date(2026, 2, 3, 4, 5, 6, 123456789, time.UTC)
	base := func(f func(*bus.Message)) *bus.Message {
		m := &bus.Message{ID: bus.NewID(), Source: "/s", Time: now, Payload: []byte("x")}
		f(m)
		return m
	}
	headers := func(nv ...string) func(*bus.Message) {
		return func(m *bus.Message) {
			for i := 0; i < len(nv); i += 2 {
				m.Headers.Add(nv[i], nv[i+1])
			}
		}
	}
	long := strings.Repeat("n", 255)
	cases := []*bus.Message{
		base(func(*bus.Message) {}),
		base(func(m *bus.Message) { m.Payload = nil }),
		base(func(m *bus.Message) { m.Payload = []byte{} }),
		base(func(m *bus.Message) { m.Payload = []byte{0, 255, 0xce} }),
		base(func(m *bus.Message) { m.Payload = make([]byte, 1<<20) }),
		base(func(m *bus.Message) { m.Key = "k\xff\x00" }),
		base(func(m *bus.Message) {
			m.Type, m.Subject, m.ContentType, m.Source, m.ID = long, "größe", "text/plain; charset=utf-8", long, long
		}),
		base(func(m *bus.Message) { m.Time = time.Date(1950, 1, 1, 0, 0, 0, 1, time.UTC) }),
		base(headers("a", "1", "b", "2")),
		base(headers("b", "1", "a", "2")),
		base(headers("a", "1", "a", "2", "a", "1")),
		base(headers("a", "1", "b", "x", "a", "2", "B", "", "a", "\xff\xfe")),
		base(headers("correlationid", "c", "causationid", "d", "traceparent", "00-1-2-01")),
		base(headers("CC", "other", "BCC", "x", "x-death", "y", "x-delivery-count", "7", "x-match", "all")),
		base(headers("x-delivery-count", "7", "CC", "a", "x-delivery-count", "8")),
		base(headers(long, "v", "größe", "w", " ", "blank", "a\nb", "c")),
		base(headers("h", strings.Repeat("v", 100_000))),
	}
	ctx := testContext(t)
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	publish(t, d, topic, cases...)
	got := map[string]*bus.Message{}
	for _, m := range receive(t, ctx, s, len(cases)) {
		got[m.ID] = m.Message
		if m.Topic != topic || m.Group != "g" {
			t.Errorf("topic %q, group %q", m.Topic, m.Group)
		}
	}
	for i, want := range cases {
		m := got[want.ID]
		if m == nil {
			t.Errorf("case %d did not come", i)
			continue
		}
		if !reflect.DeepEqual(m, want) {
			t.Errorf("case %d:\n got %+q\nwant %+q", i, m.Headers, want.Headers)
			t.Errorf("got %v %v %.100q %v\nwant %v %v %.100q %v", m, m.Time, m.Key, m.Payload == nil, want, want.Time, want.Key, want.Payload == nil)
		}
	}
}

// A message that AMQP cannot carry is refused alone, and does not cost the connection.
func TestTooLarge(t *testing.T) {
	topic := newTopic(t)
	c := brokerConfig(t)
	c.MaxMessage = 1 << 20
	d := openDriver(t, c)
	manyHeaders, large, short, name := message("1", ""), message("2", ""), message("3", ""), message("4", "")
	manyHeaders.Headers.Add("h", strings.Repeat("v", 200_000))
	large.Payload = make([]byte, 1<<20)
	short.Type = strings.Repeat("t", 256)
	name.Headers.Add(strings.Repeat("n", 256), "v")
	err := d.Publish(testContext(t), topic, []*bus.Message{message("a", ""), manyHeaders, large, message("b", ""), short, name, message("c", "")})
	pe, ok := errors.AsType[*bus.PublishError](err)
	if !ok {
		t.Fatal(err)
	}
	for i, want := range []error{nil, bus.ErrTooLarge, bus.ErrTooLarge, nil, bus.ErrInvalid, bus.ErrInvalid, nil} {
		if !errors.Is(pe.Errs[i], want) || want != nil && (!bus.IsDefinite(pe.Errs[i]) || bus.IsRetryable(pe.Errs[i])) {
			t.Errorf("%d: %v, want %v", i, pe.Errs[i], want)
		}
	}
	if err := d.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// Messages of other software are messages, with any headers and any routing key.
func TestForeignMessages(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g", "h")
	d := openDriver(t, brokerConfig(t))
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	other := subscribe(t, d, bus.Subscription{Topic: topic, Group: "h"}, newObserver())
	ch, err := d.pub.link.Current().Conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	closes := ch.NotifyClose(make(chan *amqp.Error, 1))
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	send := func(key string, p amqp.Publishing) {
		t.Helper()
		c, err := ch.PublishWithDeferredConfirm(topic, key, true, false, p)
		if err != nil {
			t.Fatal(err)
		}
		if !c.Wait() {
			t.Fatal("nack: ", <-closes)
		}
	}
	all := amqp.Table{
		"bool": true, "int8": int8(-1), "uint8": uint8(200), "int16": int16(-2), "uint16": uint16(65535), "int32": int32(-3),
		"uint32": uint32(4e9), "int64": int64(math.MinInt64), "float32": float32(0.1), "float64": 2.5,
		"decimal": amqp.Decimal{Scale: 2, Value: -12345}, "small": amqp.Decimal{Scale: 3, Value: 5}, "time": at, "void": nil,
		"bytes": []byte{0xff}, "text": "t", "empty": []any{}, "list": []any{"a", []byte("b")}, "mixed": []any{"a", int32(1), nil, 1.5},
		"x-death":          []any{amqp.Table{"count": int64(3), "queue": "q", "time": at, "routing-keys": []any{"r"}}},
		"x-delivery-count": int64(2),
		"table":            amqp.Table{"deep": amqp.Table{"f": float32(0.5), "d": amqp.Decimal{Scale: 1, Value: 15}}},
	}
	send("some.key", amqp.Publishing{
		Headers: all, MessageId: "id-1", Type: "type", AppId: "app", CorrelationId: "corr", Timestamp: at, ContentType: "text/plain",
		ContentEncoding: "gzip", ReplyTo: "reply", Body: []byte("body"),
	})
	send("other.key", amqp.Publishing{})
	send("17", amqp.Publishing{Headers: amqp.Table{
		"cloudEvents:id": "id-3", "cloudEvents:source": "/src", "cloudEvents:type": "ce", "cloudEvents:specversion": "1.0",
		"cloudEvents:time": at, "cloudEvents:subject": "sub", "cloudEvents:correlationid": "c", "cloudEvents:sequence": int32(5),
		"millrace-order": "nonsense", "millrace-tombstone": true,
	}, Body: []byte{}})
	want := []*bus.Message{
		{
			ID: "id-1", Type: "type", Source: "app", Time: at, ContentType: "text/plain", Payload: []byte("body"),
			Headers: bus.Headers{
				{Name: "bool", Value: "true"},
				{Name: "bytes", Value: "\xff"},
				{Name: "content-encoding", Value: "gzip"},
				{Name: "correlationid", Value: "corr"},
				{Name: "decimal", Value: "-123.45"},
				{Name: "empty", Value: "[]"},
				{Name: "float32", Value: "0.1"},
				{Name: "float64", Value: "2.5"},
				{Name: "int16", Value: "-2"},
				{Name: "int32", Value: "-3"},
				{Name: "int64", Value: "-9223372036854775808"},
				{Name: "int8", Value: "-1"},
				{Name: "list", Value: "a"},
				{Name: "list", Value: "b"},
				{Name: "mixed", Value: `["a",1,null,1.5]`},
				{Name: "reply-to", Value: "reply"},
				{Name: "small", Value: "0.005"},
				{Name: "table", Value: `{"deep":{"d":1.5,"f":0.5}}`},
				{Name: "text", Value: "t"},
				{Name: "time", Value: "2020-01-02T03:04:05Z"},
				{Name: "uint16", Value: "65535"},
				{Name: "uint32", Value: "4000000000"},
				{Name: "uint8", Value: "200"},
				{Name: "void", Value: ""},
				{Name: "x-death", Value: `[{"count":3,"queue":"q","routing-keys":["r"],"time":"2020-01-02T03:04:05Z"}]`},
				{Name: "x-delivery-count", Value: "2"},
			},
		},
		{Payload: []byte{}},
		{
			ID: "id-3", Source: "/src", Type: "ce", Subject: "sub", Time: at,
			Headers: bus.Headers{{Name: "correlationid", Value: "c"}, {Name: "sequence", Value: "5"}},
		},
	}
	for _, src := range []bus.Source{s, other} {
		got := receive(t, ctx, src, 3)
		for i, w := range want {
			var m *bus.Message
			for _, g := range got {
				if g.ID == w.ID || w.ID == "" && g.ID != "id-1" && g.ID != "id-3" {
					m = g.Message
				}
			}
			if m == nil {
				t.Fatalf("%d did not come", i)
			}
			if w.ID == "" {
				if m.ID == "" || time.Since(m.Time) > time.Hour || m.Time.IsZero() {
					t.Errorf("id %q, time %v", m.ID, m.Time)
				}
				w.ID, w.Time = m.ID, m.Time
			}
			if !m.Time.Equal(w.Time) {
				t.Errorf("%d: time %v, want %v", i, m.Time, w.Time)
			}
			m.Time = w.Time
			if !reflect.DeepEqual(m, w) {
				t.Errorf("%d:\n got %+v\nwant %+v", i, *m, *w)
				for k := range max(len(m.Headers), len(w.Headers)) {
					if k >= len(m.Headers) || k >= len(w.Headers) || m.Headers[k] != w.Headers[k] {
						t.Errorf("header %d of %q and %q", k, m.Headers, w.Headers)
						break
					}
				}
			}
			if w.Source == "" && i == 1 {
				w.ID = "" // another delivery has another
			}
		}
		settle(t, src, got)
	}
}

func FuzzDecodeHeaders(f *testing.F) {
	f.Add("a", "v", "millrace-order", "a")
	f.Add("cloudEvents_time", "x", "ce_id", "\xff")
	f.Add("millrace-header-CC", "", "millrace-key", "\x00")
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string) {
		for _, v := range []any{v2, []byte(v2), []any{v2, v1}, amqp.Table{v2: v1}, nil} {
			m := decode(&amqp.Delivery{Headers: amqp.Table{n1: v1, n2: v}, Body: []byte("b")})
			if m.Payload == nil || m.Time.IsZero() {
				t.Errorf("%+v", m)
			}
		}
	})
}

// An encoded message is decoded to the same message, without a broker.
func FuzzRoundTrip(f *testing.F) {
	f.Add("id", "key", "a", "1", "b", "2", "a", "3")
	f.Add("", "\xff", "CC", "", "x-death", "", "correlationid", "")
	f.Fuzz(func(t *testing.T, id, key, n1, v1, n2, v2, n3, v3 string) {
		m := &bus.Message{ID: id, Key: key, Time: time.Unix(1, 2).UTC(), Headers: bus.Headers{{Name: n1, Value: v1}, {Name: n2, Value: v2}, {Name: n3, Value: v3}}}
		for _, h := range m.Headers { // headers that the bus refuses
			lower := strings.ToLower(h.Name)
			if h.Name == "" || strings.HasPrefix(lower, "ce") || strings.HasPrefix(lower, "cloudevents") || strings.HasPrefix(lower, "millrace-") {
				t.Skip("no message that the bus would publish")
			}
		}
		p, err := encode(m, 0)
		if err != nil {
			t.Skip("no message that the bus would publish")
		}
		got := decode(&amqp.Delivery{Headers: p.Headers, MessageId: p.MessageId, Timestamp: p.Timestamp, Body: []byte{}})
		if !reflect.DeepEqual(got, m) {
			t.Errorf("got %+v\nwant %+v", *got, *m)
		}
	})
}

// Headers in which the broker counts are not taken for the publisher's, however often a message is
// given back and parked. The publisher's own headers of these names stay.
func TestBrokersHeadersStayTheBrokers(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	m := message("m0", "k")
	m.Headers = bus.Headers{{Name: "x-death", Value: "mine"}, {Name: "x-delivery-count", Value: "7"}}
	publish(t, d, topic, m)
	for range 3 {
		s, _ := parkingSource(t, d, topic)
		if got := receive(t, ctx, s, 1)[0]; !reflect.DeepEqual(got.Headers, m.Headers) {
			t.Errorf("headers %v", got.Headers)
		}
		if err := s.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := parkingSource(t, d, topic)
	ps := parkAll(receive(t, ctx, s, 1))
	for range 3 {
		if err := s.Park(ctx, ps); err != nil {
			t.Fatal(err)
		}
		dst := make([]bus.Delivery, 1)
		if n, err := s.Fetch(ctx, []bus.Token{ps[0].Token}, dst); n != 1 || err != nil || !reflect.DeepEqual(dst[0].Headers, m.Headers) {
			t.Fatalf("fetched %d, %v, headers %v", n, err, dst[0])
		}
		ps[0].Delivery = dst[0]
	}
}

// A message that came without an id has an id of its delivery, which says so. An id that the
// publisher gave stays.
func TestIdentify(t *testing.T) {
	for _, d := range []*amqp.Delivery{{}, {MessageId: "7"}, {Headers: amqp.Table{"cloudEvents_id": "7"}}} {
		m := decode(d)
		foreign := m.ID == ""
		identify(m, "t", bus.Token{Epoch: 1, Position: 1})
		if driver.IsTransientID(m.ID) != foreign || !foreign && m.ID != "7" || foreign != (d.MessageId == "" && len(d.Headers) == 0) {
			t.Errorf("%+v: %q", d, m.ID)
		}
	}
}
