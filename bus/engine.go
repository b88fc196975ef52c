package bus

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/internal/only"
)

// Engine returns the operations that packages of this module need and applications do not, most of
// them on a [Handling]. No other module can call it.
func Engine(only.Module) engine { return engine{} } //nolint:revive // its type is nobody's to name

// engine makes handlings and ends them. Each handling ends once, by Flush, Take or Discard.
type engine struct{}

// New makes the context of a call that handles d. Messages emitted under it are published through
// b.
func (engine) New(ctx context.Context, b *Bus, d Delivery) *Handling {
	h := &Handling{}
	h.begin(ctx, b, d)
	return h
}

// Begin is New in memory of the caller: a router makes many at once.
func (engine) Begin(h *Handling, ctx context.Context, b *Bus, d Delivery) { h.begin(ctx, b, d) } //nolint:revive // as a method of h

// NewDirect is New for a handler that is called without a router: Emit publishes at once.
func (e engine) NewDirect(ctx context.Context, b *Bus, d Delivery) *Handling {
	h := e.New(ctx, b, d)
	h.direct = true
	return h
}

// NewBatch is New for a batch of ms. d holds the topic, group and handler that they share.
func (e engine) NewBatch(ctx context.Context, b *Bus, d Delivery, ms []*Message) *Handling {
	if d.Message == nil {
		d.Message = &Message{}
	}
	h := e.New(ctx, b, d)
	h.batch, h.many = true, ms
	return h
}

// NewInner makes the context of a part of a handler that sends its outputs another way. Flush
// publishes the messages emitted under it through b, in a transaction for example. The rest is as
// in ctx: the delivery, and [OnSuccess], which waits for the whole handler. A nil b is the bus of
// ctx.
func (e engine) NewInner(ctx context.Context, b *Bus) *Handling {
	h := e.New(ctx, b, DeliveryFrom(ctx))
	h.outer = handlingFrom(ctx)
	if b == nil && h.outer != nil {
		h.bus = h.outer.bus
	}
	return h
}

// Flush publishes the emitted messages, one call for each run of messages to one topic. Then it
// runs the functions of [OnSuccess] and [OnEnd] and ends the call: a later Emit fails. In a batch,
// failed names the messages that lose their outputs; it may be nil. If a batch's outputs cannot be
// published, OutputError tells which message they belong to.
func (engine) Flush(ctx context.Context, h *Handling, failed func(id string) bool) error {
	return h.flush(ctx, failed)
}

// OutputError returns why outputs of m were not published, given Flush's error of a batch. It is
// nil if all outputs of m were published.
func (engine) OutputError(err error, m *Message) error {
	if part, ok := err.(*outputsError); ok { //nolint:errorlint // as flush made it
		return part.of(m)
	}
	return err
}

// Take is Flush for a router that publishes with the settlement. It ends the call and passes each
// message to publish, in a batch with the id of its cause. Pass ended the publishing's result: it
// runs the functions of [OnSuccess] and [OnEnd]. It is nil if there are none. An error is about a
// message that no broker can carry; then Take has passed nothing on.
func (engine) Take(ctx context.Context, h *Handling, failed func(id string) bool, publish func(topic, cause string, m *Message)) (ended func(context.Context, error) error, err error) {
	return h.take(ctx, failed, publish)
}

// Discard ends the call and drops the emitted messages.
func (engine) Discard(h *Handling) { h.discard() }

// SetJoiner keeps j for Joiner.
func (engine) SetJoiner(h *Handling, j any) { h.joiner = j }

// Joiner returns the joiner of the whole call with the context ctx. It is nil if there is none.
func (engine) Joiner(ctx context.Context) any {
	if h := handlingFrom(ctx); h != nil {
		return h.root().joiner
	}
	return nil
}

// CheckID reports why a received id cannot identify repeats: a foreign publisher may have given
// none, or one that another broker cannot keep unchanged. The error wraps [ErrInvalid].
func (engine) CheckID(id string) error { return checkID(id) }

// DeliverAt returns the time of [WithDeliverAt], or a zero time.
func (engine) DeliverAt(m *Message) (time.Time, error) { return deliverAt(m) }

// Marshal encodes a value that is no event with the bus's first codec; [Bus.Decode] decodes it.
func (engine) Marshal(b *Bus, v any) (data []byte, contentType string, err error) {
	return b.marshal(v)
}

// CheckName is CheckName of package driver.
func (engine) CheckName(what, name string) error { return checkName(what, name) }

// Register makes a driver known under a URL scheme. open receives the URL as [Open] does.
func (engine) Register(scheme string, open func(ctx context.Context, rawURL string) (Driver, error)) {
	register(scheme, open)
}
