package eventstore

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/millrace-go/millrace/bus"
)

// Types is a family of events: what the events of a stream may be in Go. E is usually an interface
// that they implement. Make a family at the start of a program; afterwards it is safe for
// concurrent use.
type Types[E any] struct {
	byName  map[string]reflect.Type // the type to decode into; nil: ignored
	members map[reflect.Type]bool
	rules   map[reflect.Type]rule
	errs    []error
}

// rule makes newer events of an older one. to is the type of what it makes, or nil if the rule
// splits.
type rule struct {
	to    reflect.Type
	apply func(any) ([]any, error)
}

// TypesOf makes a family of the types of values, whose contents do not matter. Each must name its
// type with a method EventType (bus.Typer): a Go type's own name would change with the program, and
// what is stored would not. Mistakes are errors of [Types.Check].
func TypesOf[E any](values ...E) *Types[E] {
	t := &Types[E]{
		byName: map[string]reflect.Type{TypeClosed: nil}, members: map[reflect.Type]bool{}, rules: map[reflect.Type]rule{},
	}
	for _, v := range values {
		of := reflect.TypeOf(v)
		if of == nil {
			t.fail("a value of the family is nil")
			continue
		}
		t.members[of] = true
		t.add(of)
	}
	return t
}

func (t *Types[E]) fail(format string, args ...any) {
	t.errs = append(t.errs, fmt.Errorf("%w: "+format, append([]any{bus.ErrInvalid}, args...)...))
}

// add notes a type under its own name.
func (t *Types[E]) add(of reflect.Type) {
	if name := stableName(of); name == "" {
		t.fail("%v has no method EventType that names it for ever", of)
	} else {
		t.name(name, of)
	}
}

func (t *Types[E]) name(name string, of reflect.Type) {
	if other, ok := t.byName[name]; ok {
		t.fail("the name %q is used twice: for %v and %v", name, display(other), display(of))
		return
	}
	t.byName[name] = of
}

func display(t reflect.Type) string {
	if t == nil {
		return "what is ignored"
	}
	return t.String()
}

// stableName is the name of a type that has a bus.Typer of its own.
func stableName(t reflect.Type) string {
	v := reflect.Zero(t)
	if t.Kind() == reflect.Pointer { // a nil pointer's method may look into it
		v = reflect.New(t.Elem())
	}
	if typer, ok := v.Interface().(bus.Typer); ok {
		return typer.EventType()
	}
	return ""
}

// Old is a rule for events that earlier versions of the program have stored: [Upcast], [Split],
// [Renamed] or [Ignored].
type Old struct {
	from  reflect.Type
	rule  rule
	names []string
}

// With adds rules for older events, and returns the family. Mistakes are errors of [Types.Check].
func (t *Types[E]) With(old ...Old) *Types[E] {
	for _, o := range old {
		for _, name := range o.names {
			t.name(name, o.from)
		}
		if o.rule.apply == nil {
			continue
		}
		if _, twice := t.rules[o.from]; twice || t.members[o.from] {
			t.fail("%v has two rules, or is a member of the family", o.from)
			continue
		}
		t.rules[o.from] = o.rule
		t.add(o.from)
	}
	return t
}

// Upcast makes an After of each Before that is read. After may be old itself: the chain follows
// from the types. Before names its type with a method EventType. An error of f is that of
// [Types.Decode].
func Upcast[Before, After any](f func(Before) (After, error)) Old {
	return Old{from: reflect.TypeFor[Before](), rule: rule{to: reflect.TypeFor[After](), apply: func(v any) ([]any, error) {
		after, err := f(v.(Before))
		return []any{after}, err
	}}}
}

// Split makes several events of each Before that is read, or none. They may be old themselves.
// Before names its type with a method EventType.
func Split[Before, E any](f func(Before) ([]E, error)) Old {
	return Old{from: reflect.TypeFor[Before](), rule: rule{apply: func(v any) ([]any, error) {
		events, err := f(v.(Before))
		all := make([]any, len(events))
		for i, e := range events {
			all[i] = e
		}
		return all, err
	}}}
}

// Renamed says by which names events of type T were stored earlier.
func Renamed[T any](earlier ...string) Old {
	return Old{from: reflect.TypeFor[T](), names: earlier}
}

// Ignored names events that mean nothing any more: they decode to none. Any other unknown name is
// [ErrUnknownType].
func Ignored(names ...string) Old { return Old{names: names} }

// Check returns what is wrong with the family, nil if nothing is: a missing name, two rules for a
// name, an upcast that leads nowhere or in a circle. Its errors wrap bus.ErrInvalid. Package
// aggregate checks the families that it uses.
func (t *Types[E]) Check() error {
	errs := slices.Clone(t.errs)
	for name, of := range t.byName {
		if of != nil && !t.members[of] && t.rules[of].apply == nil {
			errs = append(errs, fmt.Errorf("%w: %q is a name of %v, which is no member of the family", bus.ErrInvalid, name, of))
		}
	}
	for from := range t.rules {
		at := from
		for steps := 0; at != nil && !t.members[at]; steps++ {
			r, ok := t.rules[at]
			if !ok {
				errs = append(errs, fmt.Errorf("%w: %v becomes %v, which is no member of the family", bus.ErrInvalid, from, at))
				break
			}
			if steps > len(t.rules) {
				errs = append(errs, fmt.Errorf("%w: the upcasts of %v go in a circle", bus.ErrInvalid, from))
				break
			}
			at = r.to
		}
	}
	return errors.Join(errs...)
}

// Decode returns the event as the family has it today: several after a [Split], none if it is
// ignored. A type that the family does not name is [ErrUnknownType].
func (t *Types[E]) Decode(r Recorded) ([]E, error) {
	of, known := t.byName[r.Type]
	if !known {
		return nil, fmt.Errorf("eventstore: event %q: %w %q", r.ID, ErrUnknownType, r.Type)
	}
	if of == nil {
		return nil, nil
	}
	v, err := decode(r, of)
	if err != nil {
		return nil, fmt.Errorf("eventstore: decode event %q of type %q: %w", r.ID, r.Type, err)
	}
	events, err := t.newest(nil, v, 0)
	if err != nil {
		return nil, fmt.Errorf("eventstore: upcast event %q of type %q: %w", r.ID, r.Type, err)
	}
	return events, nil
}

func decode(r Recorded, of reflect.Type) (any, error) {
	if of.Kind() == reflect.Pointer {
		v := reflect.New(of.Elem())
		return v.Interface(), r.Decode(v.Interface())
	}
	v := reflect.New(of)
	err := r.Decode(v.Interface())
	return v.Elem().Interface(), err
}

// newest appends what v is today.
func (t *Types[E]) newest(events []E, v any, steps int) ([]E, error) {
	of := reflect.TypeOf(v)
	if t.members[of] {
		return append(events, v.(E)), nil
	}
	r, ok := t.rules[of]
	if !ok || steps > len(t.rules) { // a Split can make anything
		return nil, fmt.Errorf("%w: %T is no member of the family", bus.ErrInvalid, v)
	}
	made, err := r.apply(v)
	if err != nil {
		return nil, err
	}
	for _, v := range made {
		if events, err = t.newest(events, v, steps+1); err != nil {
			return nil, err
		}
	}
	return events, nil
}
