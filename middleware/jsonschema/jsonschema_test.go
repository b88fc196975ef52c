package jsonschema_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	lib "github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/middleware/jsonschema"
)

const order = `{
	"type": "object",
	"required": ["id", "items"],
	"additionalProperties": false,
	"properties": {
		"id": {"type": "string", "pattern": "^o[0-9]+$"},
		"state": {"enum": ["new", "paid"]},
		"items": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/item"}}
	},
	"$defs": {"item": {"type": "object", "properties": {"a/b": {"type": "integer", "minimum": 1}}}}
}`

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		payload, contentType string
		want                 []string // in the error; none: it is valid
		undecodable          bool
	}{
		{payload: `{"id":"o1","items":[{"a/b":1}]}`},
		{payload: `{"id":"o1","items":[{"a/b":1}]}`, contentType: "application/vnd.shop+json; charset=utf-8"},
		{payload: `{"id":"o1","items":[{"a/b":12345678901234567890}]}`},
		{payload: `{"id":"o1","items":[{},{"a/b":-77}]}`, want: []string{"/items/1/a~1b: minimum"}},
		{payload: `{"id":"secret","items":[{}]}`, want: []string{"/id: pattern"}},
		{payload: `{"id":7,"items":[]}`, want: []string{"/id: got number, want string", "/items: minItems: got 0, want 1"}},
		{payload: `{"state":"secret"}`, want: []string{"(root): missing properties 'id', 'items'", "/state: value must be one of 'new', 'paid'"}},
		{payload: `{"id":"o1","items":[1,2,3,4,5]}`, want: []string{"/items/0: got number, want object", "; and 2 more"}},
		{payload: `[]`, want: []string{"(root): got array, want object"}},
		{payload: `{`, want: []string{"as JSON"}, undecodable: true},
		{payload: ``, want: []string{"as JSON"}, undecodable: true},
		{payload: `{} {}`, want: []string{"as JSON"}, undecodable: true},
		{payload: `{}`, contentType: "text/csv", want: []string{`content type is "text/csv"`}, undecodable: true},
	} {
		called := false
		h := jsonschema.Validate([]byte(order))(bus.HandlerFunc(func(context.Context, *bus.Message) error { called = true; return nil }))
		err := h.Handle(t.Context(), &bus.Message{Payload: []byte(tc.payload), ContentType: tc.contentType})
		if called == (tc.want != nil) || (err != nil) != bus.IsPermanent(err) || errors.Is(err, bus.ErrUndecodable) != tc.undecodable {
			t.Errorf("%s: called %v, %v", tc.payload, called, err)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", tc.payload, err, want)
			}
		}
		if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "77")) {
			t.Errorf("a value of the payload is shown: %v", err)
		}
		if _, ok := errors.AsType[*lib.ValidationError](err); ok == tc.undecodable && err != nil {
			t.Errorf("%s: the library's error: %v", tc.payload, ok)
		}
	}
	tombstone := jsonschema.Validate([]byte(order))(bus.HandlerFunc(func(context.Context, *bus.Message) error { return nil }))
	if err := tombstone.Handle(t.Context(), &bus.Message{}); err != nil {
		t.Errorf("a tombstone: %v", err)
	}
}

func TestBadSchemas(t *testing.T) {
	for schema, want := range map[string]string{
		`{`:                             "unexpected EOF",
		`{"type": "thing"}`:             "type",
		`{"$ref": "other.json"}`:        "references out of the schema are not followed",
		`{"$ref": "file:///etc/hosts"}`: "references out of the schema are not followed",
		`{"$ref": "https://x.example"}`: "references out of the schema are not followed",
	} {
		h := jsonschema.Validate([]byte(schema))(bus.HandlerFunc(nil))
		if err := h.(interface{ Check() error }).Check(); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", schema, err)
		}
	}
}

// FuzzValidate: whatever the payload, no panic; an error is permanent.
func FuzzValidate(f *testing.F) {
	f.Add([]byte(`{"id":"o1","items":[{"a/b":1e400}]}`))
	f.Add([]byte(`[[[[[[`))
	h := jsonschema.Validate([]byte(order))(bus.HandlerFunc(func(context.Context, *bus.Message) error { return nil }))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if err := h.Handle(t.Context(), &bus.Message{Payload: payload}); err != nil && !bus.IsPermanent(err) {
			t.Error(err)
		}
	})
}

func ExampleValidate() {
	schema := jsonschema.Validate([]byte(`{"type": "object", "properties": {"cents": {"type": "integer", "minimum": 0}}}`))
	h := schema(bus.HandlerFunc(func(context.Context, *bus.Message) error {
		fmt.Println("handled")
		return nil
	})) // in a service: router.On(r, "payments", charge, router.Use(schema))
	for _, payload := range []string{`{"cents": 1299}`, `{"cents": "1299"}`} {
		if err := h.Handle(context.Background(), &bus.Message{Payload: []byte(payload)}); err != nil {
			fmt.Println(err, "- permanent:", bus.IsPermanent(err))
		}
	}
	// Output:
	// handled
	// the payload violates its schema: /cents: got string, want integer - permanent: true
}
