package bus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Publisher publishes events and messages. Application code depends on it. *Bus, the emitter of a
// handler and a test's recorder implement it.
type Publisher interface {
	// Publish encodes one event and publishes it. It takes a *Message or Message as it is. It
	// returns nil once the event is durable. A topic whose name begins with "millrace." or
	// "millrace_" is [ErrInvalid]: it has Millrace's own records. An event whose type would not reach a handler of it
	// ([Typer]) is [ErrInvalid].
	Publish(ctx context.Context, topic string, event any, opts ...PublishOption) error
	// PublishMessages publishes all msgs in one call. Its error is a *PublishError, index-aligned
	// with msgs.
	PublishMessages(ctx context.Context, topic string, msgs ...*Message) error
}

// Publish implements [Publisher]: it returns nil once the event is durable at the broker.
func (b *Bus) Publish(ctx context.Context, topic string, event any, opts ...PublishOption) error {
	m, err := b.encode(event, opts)
	if err != nil {
		return fmt.Errorf("publish %q: %w", topic, err)
	}
	err = b.PublishMessages(ctx, topic, m)
	if pe, ok := err.(*PublishError); ok && len(pe.Errs) == 1 { //nolint:errorlint // made just below, never wrapped
		return pe.Errs[0]
	}
	return err
}

// PublishMessages implements [Publisher]. An invalid message fails alone; the others are published.
// It completes the messages in place (see [Message]). Do not pass the same message to two calls at
// once.
func (b *Bus) PublishMessages(ctx context.Context, topic string, msgs ...*Message) error {
	if len(msgs) == 0 {
		return nil
	}
	if err := b.checkPublish(ctx, topic); err != nil {
		return failAll(len(msgs), err)
	}
	addOutgoing(ctx, msgs)
	now := time.Now()
	for i, m := range msgs {
		if err := b.complete(m, now); err != nil {
			return b.publishValid(ctx, topic, msgs, i, err)
		}
	}
	return b.send(ctx, topic, msgs)
}

// messageLists pools the slices passed to drivers, which must not retain them. So the caller's own
// slice, in most calls of a single message, stays on the caller's stack.
var messageLists = sync.Pool{New: func() any { return new([]*Message) }}

func (b *Bus) send(ctx context.Context, topic string, msgs []*Message) error {
	list := messageLists.Get().(*[]*Message)
	*list = append((*list)[:0], msgs...)
	err := b.driver.Publish(ctx, topic, *list)
	clear(*list)
	messageLists.Put(list)
	return err
}

// publishValid publishes the valid messages, after the message at bad was found invalid.
func (b *Bus) publishValid(ctx context.Context, topic string, msgs []*Message, bad int, cause error) error {
	errs := make([]error, len(msgs))
	valid := append([]*Message(nil), msgs[:bad]...)
	place := make([]int, bad, len(msgs))
	for i := range bad {
		place[i] = i
	}
	errs[bad] = &Error{Op: "publish", Broker: b.broker, Topic: topic, Err: cause, Definite: true}
	now := time.Now()
	for i := bad + 1; i < len(msgs); i++ {
		if err := b.complete(msgs[i], now); err != nil {
			errs[i] = &Error{Op: "publish", Broker: b.broker, Topic: topic, Err: err, Definite: true}
			continue
		}
		valid, place = append(valid, msgs[i]), append(place, i)
	}
	if len(valid) > 0 {
		if err := b.driver.Publish(ctx, topic, valid); err != nil {
			failed, ok := err.(*PublishError) //nolint:errorlint // the contract: exactly this type
			for j, i := range place {
				if !ok {
					errs[i] = err
				} else {
					errs[i] = failed.Errs[j]
				}
			}
		}
	}
	return &PublishError{errs}
}

func (b *Bus) checkPublish(ctx context.Context, topic string) error {
	fail := func(err error) error {
		return &Error{Op: "publish", Broker: b.broker, Topic: topic, Err: err, Definite: true}
	}
	if err := checkTopic(topic); err != nil {
		return fail(err)
	}
	select {
	case <-b.closed:
		return fail(ErrClosed)
	default:
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	return nil
}

// PublishAll publishes many events in one call. Its error is a *PublishError, index-aligned with
// events.
func PublishAll[T any](ctx context.Context, p Publisher, topic string, events []T, opts ...PublishOption) error {
	enc, ok := p.(interface {
		encode(event any, opts []PublishOption) (*Message, error)
	})
	if !ok {
		errs := make([]error, len(events))
		for i := range events {
			errs[i] = p.Publish(ctx, topic, events[i], opts...)
		}
		if PerMessage(errs) == nil {
			return nil
		}
		return &PublishError{errs}
	}
	msgs := make([]*Message, len(events))
	for i := range events {
		m, err := enc.encode(events[i], opts)
		if err != nil {
			errs := failAll(len(events), fmt.Errorf("publish %q: not sent, because event %d cannot be encoded: %w", topic, i, ErrInvalid))
			errs.Errs[i] = fmt.Errorf("publish %q: %w", topic, err)
			return errs
		}
		msgs[i] = m
	}
	return p.PublishMessages(ctx, topic, msgs...)
}

// encode makes the message of an event. A message is copied, so that the options do not change the
// caller's.
func (b *Bus) encode(event any, opts []PublishOption) (*Message, error) {
	var m *Message
	switch e := event.(type) {
	case *Message:
		if e == nil {
			return nil, fmt.Errorf("%w: the message is nil", ErrInvalid)
		}
		c := *e
		m = &c
	case Message:
		m = &e
	case interface{ message() (*Message, error) }: // a Cancellation
		var err error
		if m, err = e.message(); err != nil {
			return nil, err
		}
	default:
		name, err := typeNameOf(event)
		if err != nil {
			return nil, err
		}
		data, contentType, err := b.marshal(event)
		if err != nil {
			return nil, err
		}
		m = &Message{Type: name, ContentType: contentType, Payload: data}
		if k, ok := event.(Keyer); ok {
			m.Key = k.EventKey()
		}
	}
	if len(opts) > 0 {
		m.Headers = slices.Clone(m.Headers) // options may write into it
	}
	for _, opt := range opts {
		opt(m)
	}
	return m, nil
}

// marshal encodes a value with the first codec.
func (b *Bus) marshal(v any) (data []byte, contentType string, err error) {
	codec := b.options.codecs[0]
	if data, err = codec.Marshal(v); err != nil {
		return nil, "", fmt.Errorf("%w: encode %T as %s: %w", ErrInvalid, v, codec.ContentType(), err)
	}
	return data, codec.ContentType(), nil
}
