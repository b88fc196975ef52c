package bus

import (
	"context"
	"fmt"
	"iter"
	"reflect"
)

// Handler handles one message. nil settles it; an error goes through the failure policy. Handle is
// called concurrently for messages of different keys. ctx ends in three cases: the handler's time
// is up, the process may no longer settle the message ([ErrLaneLost]), or a shutdown's patience
// ends.
//
// Treat the message as read-only: a further try, and the poison queue, receive the same message.
// [Message.Clone] makes a copy that may be changed.
type Handler interface {
	Handle(ctx context.Context, m *Message) error
}

// BatchHandler is the optional second half of a Handler: many messages in one call. It returns nil
// if all succeeded, [PerMessage] for an outcome by message, or another error, which holds for all. A
// batch never has two messages of one key.
type BatchHandler interface {
	Handler
	HandleBatch(ctx context.Context, ms []*Message) error
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, m *Message) error

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, m *Message) error { return f(ctx, m) }

// Middleware wraps a handler. To serve batch handlers too, it returns a BatchHandler: [Around]
// writes both halves at once.
type Middleware func(next Handler) Handler

// Around makes a middleware of one function that runs around each call, of one message or of a
// batch.
func Around(f func(ctx context.Context, c Call) error) Middleware {
	return func(next Handler) Handler {
		a := around{f, next}
		if b, ok := next.(BatchHandler); ok {
			return aroundBatch{a, b}
		}
		return a
	}
}

// Call is one call of a handler.
type Call struct {
	one   *Message
	many  []*Message
	next  Handler
	batch BatchHandler
}

// Len returns the number of messages.
func (c Call) Len() int {
	if c.one != nil {
		return 1
	}
	return len(c.many)
}

// Messages yields the messages of the call.
func (c Call) Messages() iter.Seq[*Message] {
	return func(yield func(*Message) bool) {
		if c.one != nil {
			yield(c.one)
			return
		}
		for _, m := range c.many {
			if !yield(m) {
				return
			}
		}
	}
}

// Next calls the handler. A middleware may call it again with the same messages.
func (c Call) Next(ctx context.Context) error {
	if c.one != nil {
		return c.next.Handle(ctx, c.one)
	}
	return c.batch.HandleBatch(ctx, c.many)
}

type around struct {
	f    func(ctx context.Context, c Call) error
	next Handler
}

func (a around) Handle(ctx context.Context, m *Message) error {
	return a.f(ctx, Call{one: m, next: a.next})
}

type aroundBatch struct {
	around
	batch BatchHandler
}

func (a aroundBatch) HandleBatch(ctx context.Context, ms []*Message) error {
	return a.f(ctx, Call{many: ms, batch: a.batch})
}

// EventTyper is the optional part of a Handler that takes only some types of a topic's messages.
// EventTypes returns these types; nil takes all.
type EventTyper interface{ EventTypes() []string }

// Checker is an optional part of a [Handler]: Check returns its mistake, nil if there
// is none. A router reports it before anything is consumed.
type Checker interface{ Check() error }

// Idempotent is an optional part of a [Handler]: its effect happens once for each message, however
// often it is called. Either the handler records handled messages in the effect's own transaction,
// as handlers of package outbox do, or its effect can be repeated. A router that is asked for
// exactly once then needs no transactions of the broker.
type Idempotent interface {
	// Idempotent does nothing.
	Idempotent()
}

// ErrUndecodable is wrapped when a payload cannot be decoded for its handler. It is permanent.
var ErrUndecodable = fmt.Errorf("%w: cannot be decoded", ErrInvalid)

// Typed makes a Handler of a function on a decoded event. It takes the messages of T's type
// ([TypeName]). It also takes messages without a type if it is the only typed handler of its topic
// and group.
func Typed[T any](h func(ctx context.Context, event T) error) Handler { return typed[T]{h} }

type typed[T any] struct {
	h func(context.Context, T) error
}

func (t typed[T]) Handle(ctx context.Context, m *Message) error {
	var v T
	if err := decodeFor(ctx, m, &v); err != nil {
		return err
	}
	return t.h(ctx, v)
}

func (t typed[T]) EventTypes() []string { return typesOf[T]() }

// Check implements Checker.
func (t typed[T]) Check() error { return checkTyped[T](t.h == nil) }

// TypedBatch is Typed for batches. A message that cannot be decoded fails alone; the function gets
// the others.
func TypedBatch[T any](h func(ctx context.Context, events []Event[T]) error) BatchHandler {
	return typedBatch[T]{h}
}

type typedBatch[T any] struct {
	h func(context.Context, []Event[T]) error
}

func (t typedBatch[T]) Handle(ctx context.Context, m *Message) error {
	return unbatch(t.HandleBatch(ctx, []*Message{m}))
}

// unbatch is the outcome of a batch of one.
func unbatch(err error) error {
	if be, ok := err.(*BatchError); ok && len(be.Errs) == 1 { //nolint:errorlint // a handler that wraps it means the whole batch
		return be.Errs[0]
	}
	return err
}

func (t typedBatch[T]) HandleBatch(ctx context.Context, ms []*Message) error {
	events := make([]Event[T], 0, len(ms))
	errs := make([]error, len(ms))
	var place []int // of events in ms, once they differ
	for i, m := range ms {
		e := Event[T]{Message: m}
		if errs[i] = decodeFor(ctx, m, &e.Value); errs[i] != nil {
			if place == nil {
				place = make([]int, 0, len(ms))
				for j := range events {
					place = append(place, j)
				}
			}
			continue
		}
		if place != nil {
			place = append(place, i)
		}
		events = append(events, e)
	}
	if place == nil {
		return t.h(ctx, events)
	}
	if len(events) > 0 {
		err := t.h(ctx, events)
		be, each := err.(*BatchError) //nolint:errorlint // see unbatch
		if each && len(be.Errs) != len(events) {
			return err // the router reports the wrong number
		}
		for j, i := range place {
			if each {
				errs[i] = be.Errs[j]
			} else {
				errs[i] = err
			}
		}
	}
	return PerMessage(errs)
}

func (t typedBatch[T]) EventTypes() []string { return typesOf[T]() }

// Check implements Checker.
func (t typedBatch[T]) Check() error { return checkTyped[T](t.h == nil) }

// checkTyped reports the mistake of a handler of events of type T; missing says that it has no
// function.
func checkTyped[T any](missing bool) error {
	if missing {
		return fmt.Errorf("%w: the function that handles %v is nil", ErrInvalid, reflect.TypeFor[T]())
	}
	return eventTypeOf(reflect.TypeFor[T]()).err
}

func typesOf[T any]() []string {
	if name := TypeName[T](); name != "" {
		return []string{name}
	}
	return nil
}

// decodeFor decodes with the codecs of the bus that received the message.
func decodeFor(ctx context.Context, m *Message, v any) error {
	codecs := defaultCodecs
	if h := handlingFrom(ctx); h != nil && h.bus != nil {
		codecs = h.bus.options.codecs
	}
	return decode(codecs, m, v)
}

var defaultCodecs = []Codec{JSON}

func decode(codecs []Codec, m *Message, v any) error {
	codec, err := pickCodec(codecs, m.ContentType)
	if err == nil {
		if m.Payload == nil {
			return nil // a tombstone is the zero value; the handler sees it by the delivery's nil payload
		}
		err = codec.Unmarshal(m.Payload, v)
	}
	if err != nil {
		return Permanent(fmt.Errorf("message %q of type %q as %T: %w: %w", m.ID, m.Type, v, ErrUndecodable, err))
	}
	return nil
}
