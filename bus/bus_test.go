package bus_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// recorder is a driver that keeps published messages, and fails messages with a telling id.
type recorder struct {
	msgs   []*bus.Message
	closed int
}

func (r *recorder) Publish(_ context.Context, topic string, msgs []*bus.Message) error {
	errs := make([]error, len(msgs))
	for i, m := range msgs {
		if strings.HasPrefix(m.ID, "fail") {
			errs[i] = &bus.Error{Op: "publish", Broker: "rec", Topic: topic, Err: errors.New(m.ID), Definite: m.ID == "fail-definite", Retryable: true}
			continue
		}
		r.msgs = append(r.msgs, m)
	}
	if bus.PerMessage(errs) == nil {
		return nil
	}
	return &bus.PublishError{Errs: errs}
}

func (r *recorder) Subscribe(context.Context, bus.Subscription, bus.LaneObserver) (bus.Source, error) {
	return nil, bus.ErrUnsupported
}

func (r *recorder) Poison(context.Context, string) (driver.PoisonStore, error) {
	return nil, bus.ErrUnsupported
}

func (r *recorder) Capabilities() bus.Capabilities {
	return bus.Capabilities{Broker: "rec", MaxMessage: 10_000}
}
func (r *recorder) Close(context.Context) error { r.closed++; return nil }
func (r *recorder) As(target any) bool {
	if p, ok := target.(*iter.Seq[int]); ok {
		*p = slices.Values([]int{7})
		return true
	}
	return false
}

type placed struct{ ID, Customer string }

func (placed) EventType() string  { return "shop.order.placed" }
func (p placed) EventKey() string { return p.Customer }

func TestPublishFillsTheMessage(t *testing.T) {
	rec := &recorder{}
	b := bus.New(rec, bus.WithSource("/test"))
	before := time.Now()
	if err := b.Publish(t.Context(), "orders", placed{"o1", "c1"}, bus.WithHeader("tenant", "x"), bus.WithSubject("o1")); err != nil {
		t.Fatal(err)
	}
	m := rec.msgs[0]
	if m.ID == "" || m.Key != "c1" || m.Type != "shop.order.placed" || m.Source != "/test" || m.Subject != "o1" || m.ContentType != "application/json" ||
		string(m.Payload) != `{"ID":"o1","Customer":"c1"}` || m.Headers.Get("tenant") != "x" || m.Time.Before(before) {
		t.Errorf("%+v", *m)
	}
	raw := &bus.Message{ID: "r1", Headers: bus.Headers{{Name: "a", Value: "1"}}}
	if err := b.Publish(t.Context(), "orders", raw, bus.WithKey("k"), bus.WithCause(m)); err != nil {
		t.Fatal(err)
	}
	if got := rec.msgs[1]; got.Key != "k" || got.Headers.Get(bus.HeaderCausationID) != m.ID || got.Headers.Get(bus.HeaderCorrelationID) != m.ID {
		t.Errorf("%v", got.Headers)
	}
	if raw.Key != "" || len(raw.Headers) != 1 {
		t.Error("options must leave the caller's message alone")
	}
}

func TestPublishErrorsAreAligned(t *testing.T) {
	rec := &recorder{}
	b := bus.New(rec)
	err := b.PublishMessages(t.Context(), "t",
		&bus.Message{ID: "ok1"}, &bus.Message{ID: "x", Headers: bus.Headers{{Name: "ce_id"}}}, &bus.Message{ID: "fail-definite"}, nil,
		&bus.Message{ID: "fail-unknown"}, &bus.Message{ID: "big", Payload: make([]byte, 20_000)}, &bus.Message{ID: "ok2"})
	pe, ok := errors.AsType[*bus.PublishError](err)
	if !ok || len(pe.Errs) != 7 {
		t.Fatalf("%v", err)
	}
	for i, want := range []struct {
		is                  error
		definite, retryable bool
	}{{}, {bus.ErrInvalid, true, false}, {nil, true, true}, {bus.ErrInvalid, true, false}, {nil, false, true}, {bus.ErrTooLarge, true, false}, {}} {
		e := pe.Errs[i]
		if i == 0 || i == 6 {
			if e != nil {
				t.Errorf("message %d: %v", i, e)
			}
			continue
		}
		if e == nil || want.is != nil && !errors.Is(e, want.is) || bus.IsDefinite(e) != want.definite || bus.IsRetryable(e) != want.retryable {
			t.Errorf("message %d: %v, definite %v, retryable %v", i, e, bus.IsDefinite(e), bus.IsRetryable(e))
		}
	}
	if len(rec.msgs) != 2 || bus.IsDefinite(err) {
		t.Errorf("%d published, definite %v", len(rec.msgs), bus.IsDefinite(err))
	}
	if !strings.Contains(err.Error(), "5 of 7 messages failed") {
		t.Error(err)
	}
	if !strings.Contains(pe.Errs[4].Error(), "not known") || strings.Contains(pe.Errs[2].Error(), "not known") {
		t.Errorf("%v; %v", pe.Errs[4], pe.Errs[2])
	}
}

func TestBadInputIsAnError(t *testing.T) {
	b := bus.New(&recorder{})
	for name, m := range map[string]*bus.Message{
		"control character in the id": {ID: "a\nb"},
		"long type":                   {Type: strings.Repeat("x", 300)},
		"type is no UTF-8":            {Type: "\xff"},
		"reserved header":             {Headers: bus.Headers{{Name: "CloudEvents_id"}}},
		"content type as a header":    {Headers: bus.Headers{{Name: "Content-Type"}}},
		"empty header name":           {Headers: bus.Headers{{}}},
		"header name is no UTF-8":     {Headers: bus.Headers{{Name: "\xfe"}}},
		"long key":                    {Key: strings.Repeat("k", 256)},
	} {
		if err := b.Publish(t.Context(), "t", m); !errors.Is(err, bus.ErrInvalid) || !bus.IsDefinite(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, topic := range []string{"", "a b", "a/b", "..", strings.Repeat("t", 201), "ä"} {
		if err := b.Publish(t.Context(), topic, &bus.Message{}); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("topic %q: %v", topic, err)
		}
	}
	if err := b.Publish(t.Context(), "t", func() {}); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "func()") {
		t.Errorf("unencodable: %v", err)
	}
	for name, m := range map[string]*bus.Message{
		"odd header names":  {Headers: bus.Headers{{Name: "x y\tz"}, {Name: "Ceiling"}, {Name: "ce"}, {Name: "é"}}},
		"binary key, value": {Key: "\xff\x00", Headers: bus.Headers{{Name: "h", Value: "\xfe\x00"}}},
	} {
		if err := b.Publish(t.Context(), "t", m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPublishAllEncodesBeforeItSends(t *testing.T) {
	rec := &recorder{}
	b := bus.New(rec)
	if err := bus.PublishAll(t.Context(), b, "t", []placed{{"1", "a"}, {"2", "b"}}, bus.WithHeader("h", "v")); err != nil || len(rec.msgs) != 2 || rec.msgs[1].Key != "b" {
		t.Errorf("%v, %d published", err, len(rec.msgs))
	}
	err := bus.PublishAll(t.Context(), b, "t", []any{1, func() {}})
	pe, ok := errors.AsType[*bus.PublishError](err)
	if !ok || len(pe.Errs) != 2 || len(rec.msgs) != 2 || !bus.IsDefinite(err) {
		t.Errorf("%v, %d published", err, len(rec.msgs))
	}
}

func TestCloseIsIdempotentAndEndsEverything(t *testing.T) {
	rec := &recorder{}
	b := bus.New(rec)
	for range 3 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if rec.closed != 1 {
		t.Errorf("the driver was closed %d times", rec.closed)
	}
	err := b.Publish(t.Context(), "t", &bus.Message{})
	if !errors.Is(err, bus.ErrClosed) || !bus.IsDefinite(err) || bus.IsRetryable(err) {
		t.Errorf("publish: %v", err)
	}
	if err := b.Ping(t.Context()); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("ping: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := bus.New(rec).Publish(ctx, "t", &bus.Message{}); !errors.Is(err, context.Canceled) || !bus.IsDefinite(err) {
		t.Errorf("publish under an ended context: %v", err)
	}
}

func TestAsFindsDriverAndNativeClient(t *testing.T) {
	rec := &recorder{}
	b := bus.New(rec)
	if d, ok := bus.As[*recorder](b); !ok || d != rec {
		t.Error("the driver")
	}
	if seq, ok := bus.As[iter.Seq[int]](b); !ok || slices.Collect(seq)[0] != 7 {
		t.Error("the native client")
	}
	if _, ok := bus.As[driver.Lagger](b); ok {
		t.Error("an ability that it lacks")
	}
}

func TestVerdicts(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		err                           error
		permanent, ignored, retryable bool
		delay                         time.Duration
	}{
		{boom, false, false, true, 0},
		{fmt.Errorf("x: %w", bus.Permanent(boom)), true, false, false, 0},
		{bus.Ignore(boom), false, true, true, 0},
		{bus.RetryAfter(boom, time.Minute), false, false, true, time.Minute},
	} {
		d, told := bus.RetryDelay(tc.err)
		if bus.IsPermanent(tc.err) != tc.permanent || bus.IsIgnored(tc.err) != tc.ignored || bus.IsRetryable(tc.err) != tc.retryable || d != tc.delay || told != (d > 0) || !errors.Is(tc.err, boom) {
			t.Errorf("%v", tc.err)
		}
	}
	if bus.Permanent(nil) != nil || bus.Ignore(nil) != nil || bus.RetryAfter(nil, 1) != nil || bus.PerMessage([]error{nil, nil}) != nil {
		t.Error("nil must stay nil")
	}
	if err := bus.PerMessage([]error{nil, boom}); !errors.Is(err, boom) || !strings.Contains(err.Error(), "1 of 2") {
		t.Error(err)
	}
}

func TestTypeNames(t *testing.T) {
	type bare struct{}
	type generic[T any] struct{ V T }
	for got, want := range map[string]string{
		bus.TypeName[placed]():          "shop.order.placed",
		bus.TypeName[*placed]():         "shop.order.placed",
		bus.TypeName[bare]():            "bare",
		bus.TypeName[generic[placed]](): "generic",
		bus.TypeName[map[string]any]():  "",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// text is a codec that is not JSON.
type text struct{}

func (text) ContentType() string           { return "text/plain" }
func (text) Marshal(v any) ([]byte, error) { return []byte(v.(string)), nil }
func (text) Unmarshal(data []byte, v any) error {
	*v.(*string) = string(data)
	return nil
}

func TestCodecIsChosenByContentType(t *testing.T) {
	rec := &recorder{}
	b := bus.New(rec, bus.WithCodecs(text{}))
	if err := b.Publish(t.Context(), "t", "hello"); err != nil || rec.msgs[0].ContentType != "text/plain" || string(rec.msgs[0].Payload) != "hello" {
		t.Errorf("%v %v", err, rec.msgs)
	}
	for _, tc := range []struct{ contentType, payload, want string }{
		{"", "plain", "plain"},
		{"text/plain; charset=utf-8", "plain", "plain"},
		{"application/json", `"json"`, "json"},
		{"application/vnd.shop+json", `"json"`, "json"},
	} {
		var got string
		if err := b.Decode(&bus.Message{ContentType: tc.contentType, Payload: []byte(tc.payload)}, &got); err != nil || got != tc.want {
			t.Errorf("%q: %q, %v", tc.contentType, got, err)
		}
	}
	var got string
	if err := b.Decode(&bus.Message{ContentType: "image/png", Payload: []byte{1}}, &got); !errors.Is(err, bus.ErrUndecodable) || !bus.IsPermanent(err) {
		t.Error(err)
	}
}
