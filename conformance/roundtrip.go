package conformance

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var roundTripChecks = []check{
	{"round-trip/fields", roundTripFields},
	{"round-trip/large", roundTripLarge},
	{"round-trip/through-the-router", roundTripRouter},
}

// roundTripFields: every field of a message arrives unchanged.
func roundTripFields(e *env) {
	b := e.bus()
	at := time.Date(2026, 2, 3, 4, 5, 6, 789_000_000, time.UTC)
	msgs := []*bus.Message{
		{ID: "full", Key: "k", Type: "shop.order", Source: "/shop", Subject: "o1", Time: at, ContentType: "application/json", Payload: []byte(`{"a":1}`), Headers: bus.Headers{{Name: "tenant", Value: "x"}}},
		{ID: "nil payload", Key: "k"},
		{ID: "empty payload", Key: "k", Payload: []byte{}},
		{ID: "binary", Key: "\xff\x00\xfe", Payload: []byte{0, 1, 0xff, '\n'}},
		{ID: "unicode Ω 漢", Key: "Ω", Type: "Ω", Subject: "漢字", Source: "/Ω", ContentType: "text/plain; charset=utf-8", Payload: []byte("漢")},
		{ID: "headers", Headers: bus.Headers{
			{Name: "z", Value: "1"},
			{Name: "a", Value: "2"},
			{Name: "z", Value: "3"},
			{Name: "a", Value: ""},
			{Name: "binary", Value: "\xff\x00"},
			{Name: "with space and Ω", Value: "v"},
			{Name: "UPPER", Value: "u"},
			{Name: "upper", Value: "l"},
			{Name: "long", Value: strings.Repeat("x", 10_000)},
		}},
		{ID: "extensions", Headers: bus.Headers{{Name: bus.HeaderCorrelationID, Value: "c1"}, {Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, {Name: bus.HeaderCausationID, Value: "c2"}}},
		{ID: "numbers", Headers: bus.Headers{{Name: "n", Value: "007"}, {Name: "t", Value: "true"}}},
		{ID: strings.Repeat("i", 255), Key: strings.Repeat("k", 255), Type: strings.Repeat("t", 255)},
	}
	topic := e.name("fields")
	s, _ := e.source(b, bus.Subscription{Topic: topic, Group: e.name("g")})
	before := time.Now().Add(-time.Second)
	e.publish(b, topic, msgs...)
	got := map[string]*bus.Message{}
	for _, d := range e.receive(s, len(msgs)) {
		got[d.ID] = d.Message
		if d.Topic != topic || d.Attempt > 1 {
			e.errorf("message %q: topic %q, attempt %d", d.ID, d.Topic, d.Attempt)
		}
	}
	for _, want := range msgs {
		m := got[want.ID]
		if m == nil {
			e.errorf("message %.20q did not arrive", want.ID)
			continue
		}
		same(e, want, m)
		if want.ID != "full" && (m.Time.Before(before) || m.Time.After(time.Now().Add(time.Second))) {
			e.errorf("message %.20q: its time is %v", want.ID, m.Time)
		}
	}
}

// same reports each field in which two messages differ.
func same(e *env, want, got *bus.Message) {
	for _, f := range []struct{ name, want, got string }{
		{"key", want.Key, got.Key},
		{"type", want.Type, got.Type},
		{"source", want.Source, got.Source},
		{"subject", want.Subject, got.Subject},
		{"content type", want.ContentType, got.ContentType},
		{"time", want.Time.UTC().Truncate(time.Millisecond).String(), got.Time.UTC().Truncate(time.Millisecond).String()},
		{"payload", string(want.Payload), string(got.Payload)},
	} {
		if f.want != f.got {
			e.errorf("message %.20q: its %s is %.60q, want %.60q", want.ID, f.name, f.got, f.want)
		}
	}
	if (want.Payload == nil) != (got.Payload == nil) {
		e.errorf("message %.20q: nil and empty payload were confused (nil: %v)", want.ID, got.Payload == nil)
	}
	if !slices.Equal(want.Headers, got.Headers) {
		e.errorf("message %.20q: its headers are %.200q, want %.200q", want.ID, got.Headers, want.Headers)
	}
}

// roundTripLarge: a payload of almost 1 MB, and one of 1 MB where the broker takes it.
func roundTripLarge(e *env) {
	b := e.bus()
	size := 1 << 20
	if most := e.capabilities(b).MaxMessage; most > 0 {
		size = min(size, most-2000)
	}
	if size < 900_000 {
		e.fatalf("the driver takes at most %d bytes", size)
	}
	payload := bytes.Repeat([]byte{0, 1, 2, 3, 0xff}, size/5)
	topic := e.name("large")
	s, _ := e.source(b, bus.Subscription{Topic: topic, Group: e.name("g")})
	e.publish(b, topic, &bus.Message{ID: "large", Payload: payload}, &bus.Message{ID: "small"})
	for _, d := range e.receive(s, 2) {
		if d.ID == "large" && !bytes.Equal(d.Payload, payload) {
			e.errorf("the payload of %d bytes came with %d", len(payload), len(d.Payload))
		}
	}
}

// roundTripRouter: a handler sees the delivery's facts; a message in structured mode arrives as the
// message it holds.
func roundTripRouter(e *env) {
	b := e.bus()
	topic, group := e.name("router"), e.name("g")
	r := router.New(b, group)
	got := make(chan bus.Delivery, 2)
	r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
		d := bus.DeliveryFrom(ctx)
		if d.Message.ID != m.ID {
			e.errorf("the delivery is of %q, the message is %q", d.Message.ID, m.ID)
		}
		got <- d
		return nil
	})
	e.run(r)
	start := time.Now()
	e.publish(b, topic, &bus.Message{
		ID: "envelope", Key: "k", ContentType: "application/cloudevents+json",
		Payload: []byte(`{"specversion":"1.0","id":"inside","source":"/s","type":"t","datacontenttype":"application/json","data":{"n":1}}`),
	})
	select {
	case d := <-got:
		if d.ID != "inside" || d.Key != "k" || d.Type != "t" || string(d.Payload) != `{"n":1}` {
			e.errorf("structured mode was read as %v, payload %q", d.Message, d.Payload)
		}
		if d.Topic != topic || d.Group != group || d.Handler != group+"/"+topic || d.Attempt != 1 || d.FirstSeen.Before(start.Add(-time.Second)) {
			e.errorf("delivery: topic %q, group %q, handler %q, attempt %d, first seen %v", d.Topic, d.Group, d.Handler, d.Attempt, d.FirstSeen)
		}
	case <-e.ctx.Done():
		e.fatalf("the message did not arrive")
	}
}
