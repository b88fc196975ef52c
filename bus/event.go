package bus

import (
	"reflect"
	"strings"
)

// Typer gives an event type its stable name on the wire. EventType is called on zero values.
// Without it the name is the bare name of the Go type, which a rename changes.
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
// of every type.
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

// typeNameOf is TypeName of a value to publish.
func typeNameOf(v any) string {
	if t, ok := v.(Typer); ok {
		return t.EventType()
	}
	t := reflect.TypeOf(v)
	if t == nil {
		return ""
	}
	return goName(t)
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
