package bus

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
)

// eventType holds the facts about a Go type as an event.
type eventType struct {
	name string // the Go type's bare name; "" if it has none
	err  error  // why no value of the type is an event; nil if its values are
}

// eventTypes caches eventType by reflect.Type: the look-up of methods costs more than the rest of
// encoding.
var eventTypes sync.Map

func eventTypeOf(t reflect.Type) *eventType {
	if e, ok := eventTypes.Load(t); ok {
		return e.(*eventType)
	}
	e, _ := eventTypes.LoadOrStore(t, &eventType{goName(t), checkEventType(t)})
	return e.(*eventType)
}

var (
	typerType   = reflect.TypeFor[Typer]()
	keyerType   = reflect.TypeFor[Keyer]()
	messageType = reflect.TypeFor[Message]()
)

// checkEventType reports why a Go type would not be on the wire what its name in the program says.
func checkEventType(t reflect.Type) error {
	of := t
	if t.Kind() == reflect.Pointer {
		of = t.Elem()
	}
	switch {
	case of.PkgPath() == messageType.PkgPath():
		return fmt.Errorf("%w: %v belongs to package bus and is no event: publish and handle your own type, or take messages with router.HandleFunc", ErrInvalid, t)
	case t != of:
	case lacksMethod(t, typerType):
		return fmt.Errorf("%w: EventType of %v has a pointer receiver, so a value has another type on the wire than a pointer: declare it on %v, or publish and handle *%v", ErrInvalid, t, t, t)
	case lacksMethod(t, keyerType):
		return fmt.Errorf("%w: EventKey of %v has a pointer receiver, so a value has no key: declare it on %v, or publish and handle *%v", ErrInvalid, t, t, t)
	}
	if !t.Implements(typerType) && strings.Contains(of.Name(), "[") {
		name, _, _ := strings.Cut(of.Name(), "[")
		return fmt.Errorf("%w: %v is generic, and all types of %s would have one name: give it a method EventType, or a name of its own (type X %s[…])", ErrInvalid, t, name, name)
	}
	return nil
}

// lacksMethod reports whether only pointers to values of t have the method of an interface.
func lacksMethod(t, method reflect.Type) bool {
	return t.Kind() != reflect.Interface && !t.Implements(method) && reflect.PointerTo(t).Implements(method)
}
