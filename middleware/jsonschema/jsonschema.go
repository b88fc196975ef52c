// Package jsonschema refuses messages with a payload that violates a JSON schema. It builds on
// github.com/santhosh-tekuri/jsonschema.
package jsonschema

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"mime"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/middleware"
)

// Validate refuses messages that violate schema, a JSON schema of any draft (by default 2020-12).
// The error is [bus.Permanent], so the message goes to the poison queue without a try.
//
// For the first three violations the error names the place in the payload, as a JSON pointer, and
// the rule. It shows no values, which may be confidential; errors.As finds them in the
// [*jsonschema.ValidationError]. A payload that is no JSON is [bus.ErrUndecodable]. A tombstone
// passes.
//
// References lead to places in the same schema; Validate reads no files and no network. It checks
// "format" only where the draft requires it.
//
// Put it outside of all costly middleware.
func Validate(schema []byte) bus.Middleware {
	s, err := compile(schema)
	if err != nil {
		return middleware.Invalid(fmt.Errorf("jsonschema: %w: the schema: %w", bus.ErrInvalid, err))
	}
	return middleware.Validate(func(_ context.Context, m *bus.Message) error { return check(s, m) })
}

const schemaURL = "schema.json"

func compile(schema []byte) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	if err := c.AddResource(schemaURL, doc); err != nil {
		return nil, err
	}
	return c.Compile(schemaURL)
}

// noLoader keeps a schema from reading files and URLs.
type noLoader struct{}

// Load implements jsonschema.URLLoader.
func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("%s: references out of the schema are not followed", url)
}

func check(s *jsonschema.Schema, m *bus.Message) error {
	if m.Payload == nil {
		return nil
	}
	if !isJSON(m.ContentType) {
		return fmt.Errorf("%w: content type is %q: the schema is for JSON", bus.ErrUndecodable, m.ContentType)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(m.Payload))
	if err != nil {
		return fmt.Errorf("%w: as JSON: %w", bus.ErrUndecodable, err)
	}
	err = s.Validate(doc)
	if v, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
		return &violation{v}
	}
	return err
}

func isJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && (media == "application/json" || strings.HasSuffix(media, "+json"))
}

// violation shows the library's error without the payload's values.
type violation struct{ err *jsonschema.ValidationError }

// Unwrap returns the whole error.
func (v *violation) Unwrap() error { return v.err }

// shown is the number of violations in the text.
const shown = 3

func (v *violation) Error() string {
	var b strings.Builder
	b.WriteString("the payload violates its schema: ")
	n := 0
	leaves(v.err, func(e *jsonschema.ValidationError) {
		switch n++; {
		case n > shown:
			return
		case n > 1:
			b.WriteString("; ")
		}
		b.WriteString(pointer(e.InstanceLocation))
		b.WriteString(": ")
		b.WriteString(rule(e.ErrorKind))
	})
	if n > shown {
		fmt.Fprintf(&b, "; and %d more", n-shown)
	}
	return b.String()
}

// leaves calls f for each violation that has no more precise ones below it.
func leaves(e *jsonschema.ValidationError, f func(*jsonschema.ValidationError)) {
	if len(e.Causes) == 0 {
		f(e)
	}
	for _, cause := range e.Causes {
		leaves(cause, f)
	}
}

var escape = strings.NewReplacer("~", "~0", "/", "~1")

// pointer is a JSON pointer (RFC 6901), or "(root)" for the whole.
func pointer(path []string) string {
	if len(path) == 0 {
		return "(root)"
	}
	var b strings.Builder
	for _, p := range path {
		b.WriteByte('/')
		b.WriteString(escape.Replace(p))
	}
	return b.String()
}

var english = message.NewPrinter(language.English)

// rule names the violated rule: in full if it shows no value of the payload, else by the keyword.
func rule(k jsonschema.ErrorKind) string {
	switch k.(type) {
	case *kind.Type, *kind.Required, *kind.Enum, *kind.Const, *kind.MinLength, *kind.MaxLength, *kind.MinItems, *kind.MaxItems,
		*kind.MinProperties, *kind.MaxProperties, *kind.UniqueItems, *kind.AdditionalProperties, *kind.FalseSchema, *kind.Not, *kind.OneOf:
		return k.LocalizedString(english)
	}
	return strings.Join(k.KeywordPath(), "/")
}
