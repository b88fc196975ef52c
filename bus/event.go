package bus

import (
	"fmt"
	"reflect"
	"strings"
)

// Typer gives an event type its stable name on the wire. EventType is called on zero values.
// Without it the name is the bare name of the Go type, which a rename changes.
//
// Declare EventType and EventKey on the type itself, not on its pointer, unless pointers alone are
// published and handled: a value would have another type, and no key. Publishing such a value is
// [ErrInvalid], and so is a handler of it.
type Typer interface{ EventType() string }

// Keyer gives an event its message key; [WithKey] overrides it. EventKey is called on zero values
// too.
type Keyer interface{ EventKey() string }

// Event is a decoded message: the value and, embedded, its message.
type Event[T any] struct {
	*Message
	Value T
}

// TypeName returns the name on the wire of T's events: EventType(), or the Go type's bare name. It
// is "" for types without a name, such as map[string]any. A handler of such a type takes messages
// of every type. A generic type needs an EventType: its bare name would be that of all its types.
func TypeName[T any]() string {
	var zero T
	t := reflect.TypeFor[T]()
	if t.Kind() == reflect.Pointer { // a nil pointer's method may look into it
		if v, ok := reflect.New(t.Elem()).Interface().(Typer); ok {
			return v.EventType()
		}
	} else if v, ok := any(zero).(Typer); ok {
		return v.EventType()
	}
	return goName(t)
}

// typeNameOf is TypeName of a value to publish. It refuses values that are no events.
func typeNameOf(v any) (string, error) {
	t := reflect.TypeOf(v)
	if t == nil {
		return "", nil
	}
	e := eventTypeOf(t)
	if e.err != nil {
		return "", e.err
	}
	if t.Kind() == reflect.Pointer && reflect.ValueOf(v).IsNil() {
		return "", fmt.Errorf("%w: the event is a nil %v", ErrInvalid, t)
	}
	if t, ok := v.(Typer); ok {
		return t.EventType(), nil
	}
	return e.name, nil
}

func goName(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.PkgPath() == "" { // string, int, …: a built-in type says nothing about the event
		return ""
	}
	name, _, _ := strings.Cut(t.Name(), "[") // a generic type's arguments hold whole package paths
	return name
}
