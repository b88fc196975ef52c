package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Handling is the context of one call of a handler. It knows the delivery, and keeps emitted
// messages until the handler has succeeded. Routers make it; handlers meet it as their ctx, through
// [DeliveryFrom] and [Emit]. Tests get one from package bustest.
type Handling struct {
	context.Context
	// Delivery is the delivery in work. In a batch it holds the parts that the messages share.
	Delivery Delivery

	bus    *Bus
	batch  bool
	many   []*Message // of the batch
	direct bool       // emitting is publishing

	outer  *Handling // of an inner handling
	joiner any       // nil: the handler's transaction cannot settle

	promised atomic.Pointer[promises] // nil: nothing yet; ended: the call is over, and nothing was promised
}

// promises are the tasks that a call leaves for its end. Most calls have none, so the first task
// makes them.
type promises struct {
	mu      sync.Mutex
	out     []emitted
	endings []ending
	lastOf  int  // the batch's message that had the last output
	done    bool // the call is over
}

// ended are the promises of calls that ended without any.
var ended = &promises{done: true}

// promises returns the call's promises, with their lock held.
func (h *Handling) promises() *promises {
	p := h.promised.Load()
	if p == nil {
		if p = new(promises); !h.promised.CompareAndSwap(nil, p) {
			p = h.promised.Load()
		}
	}
	p.mu.Lock()
	return p
}

type emitted struct {
	topic string
	msg   *Message
	cause string // id of the causing message, in a batch
}

type handlingKey struct{}

// begin makes h the context of a call that handles d. Messages emitted under it are published
// through b.
func (h *Handling) begin(ctx context.Context, b *Bus, d Delivery) {
	h.Context, h.bus, h.Delivery = ctx, b, d
}

// Value implements context.Context.
func (h *Handling) Value(key any) any {
	if key == (handlingKey{}) {
		return h
	}
	return h.Context.Value(key)
}

func handlingFrom(ctx context.Context) *Handling {
	h, _ := ctx.Value(handlingKey{}).(*Handling)
	return h
}

// DeliveryFrom tells a handler how its message arrived: topic, group, lane, position, attempt,
// first-seen time. In a batch handler it holds the parts that the batch shares. Outside of a
// handler it is zero, with an empty Message.
func DeliveryFrom(ctx context.Context) Delivery {
	if h := handlingFrom(ctx); h != nil {
		return h.Delivery
	}
	return Delivery{Message: &Message{}}
}

// Emit publishes with the handler's success: after the handler and its middleware returned nil, and
// before the message is settled. If the handler fails, nothing is published. If the publishing
// fails, the message counts as failed.
//
// In a batch handler Emit needs [WithCause] with a message of the batch: the event is published if
// that message succeeds. Emit fails outside of a handler, and after the handler has returned.
func Emit(ctx context.Context, topic string, event any, opts ...PublishOption) error {
	return Emitter(ctx).Publish(ctx, topic, event, opts...)
}

// Emitter returns [Emit] as a Publisher, for code that takes a Publisher.
func Emitter(ctx context.Context) Publisher {
	if h := handlingFrom(ctx); h != nil {
		return emitter{h}
	}
	return noEmitter{}
}

// emitter is the Publisher of a handling.
type emitter struct{ *Handling }

// Publish implements Publisher; see [Emit].
func (h emitter) Publish(ctx context.Context, topic string, event any, opts ...PublishOption) error {
	m, err := h.encode(event, opts)
	if err != nil {
		return fmt.Errorf("emit %q: %w", topic, err)
	}
	if err = h.PublishMessages(ctx, topic, m); err == nil {
		return nil
	}
	if pe, ok := err.(*PublishError); ok && len(pe.Errs) == 1 { //nolint:errorlint // made just below, never wrapped
		return pe.Errs[0]
	}
	return err
}

func (h *Handling) encode(event any, opts []PublishOption) (*Message, error) {
	return h.bus.encode(event, opts)
}

// PublishMessages implements Publisher; see [Emit]. It emits all messages or none.
func (h emitter) PublishMessages(ctx context.Context, topic string, msgs ...*Message) error {
	if h.direct {
		return h.bus.PublishMessages(ctx, topic, msgs...)
	}
	addOutgoing(ctx, msgs) // now, because the middleware's context ends before the handler's outputs are published
	if err := h.emit(topic, msgs); err != nil {
		return failAll(len(msgs), err)
	}
	return nil
}

func (h *Handling) emit(topic string, msgs []*Message) error {
	if err := checkTopic(topic); err != nil {
		return fmt.Errorf("emit: %w", err)
	}
	now := time.Now()
	for _, m := range msgs { // now, because only this message fails, not every message that ends with it
		if err := h.bus.complete(m, now); err != nil {
			return fmt.Errorf("emit %q: %w", topic, err)
		}
	}
	p := h.promises()
	defer p.mu.Unlock()
	if p.done {
		return errors.New("emit: the handler has returned already: goroutines that emit must end before it returns")
	}
	before := len(p.out)
	for _, m := range msgs {
		e := emitted{topic: topic, msg: m}
		if h.batch {
			e.cause = m.Headers.Get(HeaderCausationID)
			if err := h.checkCause(p, e.cause); err != nil {
				p.out = p.out[:before]
				return err
			}
		}
		p.out = append(p.out, e)
	}
	return nil
}

// checkCause refuses an output without a message of the batch as its cause: its success would
// depend on nothing.
func (h *Handling) checkCause(p *promises, cause string) error {
	if cause == "" {
		return errors.New("emit: in a batch handler, say which message leads to the output: bus.WithCause(e.Message)")
	}
	for i := range h.many { // outputs come mostly in the order of the messages
		if at := (p.lastOf + i) % len(h.many); h.many[at].ID == cause {
			p.lastOf = at
			return nil
		}
	}
	return fmt.Errorf("emit: %w: its cause is %q, which is no message of the batch: pass bus.WithCause the message that led to the output", ErrInvalid, cause)
}

func (h *Handling) flush(ctx context.Context, failed func(id string) bool) error {
	out, endings := h.end()
	err := h.publish(ctx, out, failed)
	if part, ok := err.(*outputsError); ok { //nolint:errorlint // as publish made it
		if ended := conclude(ctx, endings, nil, func(id string) bool { return failed != nil && failed(id) || part.causes[id] != nil }); ended != nil {
			return ended
		}
		return err
	}
	return conclude(ctx, endings, err, failed)
}

func (h *Handling) publish(ctx context.Context, out []emitted, failed func(id string) bool) error {
	var part *outputsError
	for len(out) > 0 {
		topic := out[0].topic
		n := 0
		run := make([]emitted, 0, len(out))
		for n < len(out) && out[n].topic == topic {
			if e := out[n]; (failed == nil || !failed(e.cause)) && (part == nil || part.causes[e.cause] == nil) {
				run = append(run, e)
			}
			n++
		}
		out = out[n:]
		err := h.publishRun(ctx, topic, run)
		switch {
		case err == nil:
		case !h.batch:
			return fmt.Errorf("emit: %w", err)
		default:
			if part == nil {
				part = &outputsError{map[string]error{}}
			}
			part.add(run, err)
		}
	}
	if part != nil {
		return part
	}
	return nil
}

func (h *Handling) publishRun(ctx context.Context, topic string, run []emitted) error {
	msgs := make([]*Message, len(run))
	for i := range run {
		msgs[i] = run[i].msg
	}
	return h.bus.PublishMessages(ctx, topic, msgs...)
}

func (h *Handling) discard() {
	if _, endings := h.end(); len(endings) > 0 {
		_ = conclude(h.Context, endings, errDiscarded, nil) // it returns errDiscarded: the call has failed already
	}
}

func (h *Handling) take(ctx context.Context, failed func(id string) bool, publish func(topic, cause string, m *Message)) (ended func(context.Context, error) error, err error) {
	out, endings := h.end()
	out = slices.DeleteFunc(out, func(e emitted) bool { return failed != nil && failed(e.cause) })
	now := time.Now()
	for _, e := range out {
		if err := h.bus.complete(e.msg, now); err != nil {
			return nil, conclude(ctx, endings, fmt.Errorf("emit: publish %q: %w", e.topic, err), failed)
		}
	}
	for _, e := range out {
		publish(e.topic, e.cause, e.msg)
	}
	if len(endings) > 0 {
		ended = func(ctx context.Context, err error) error { return conclude(ctx, endings, err, failed) }
	}
	return ended, nil
}

func (h *Handling) end() ([]emitted, []ending) {
	if h.promised.CompareAndSwap(nil, ended) {
		return nil, nil
	}
	p := h.promises()
	defer p.mu.Unlock()
	if p.done {
		return nil, nil
	}
	out, endings := p.out, p.endings
	p.out, p.endings, p.done = nil, nil, true
	return out, endings
}

// noEmitter is the emitter outside of a handler.
type noEmitter struct{}

var errNotHandling = errors.New("emit: this context is not a handler's")

func (noEmitter) Publish(context.Context, string, any, ...PublishOption) error { return errNotHandling }

func (noEmitter) PublishMessages(_ context.Context, _ string, msgs ...*Message) error {
	return failAll(len(msgs), errNotHandling)
}
