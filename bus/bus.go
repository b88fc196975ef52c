package bus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Publisher publishes events and messages. Application code depends on it. *Bus, the emitter of a
// handler and a test's recorder implement it.
type Publisher interface {
	// Publish encodes one event and publishes it. It takes a *Message or Message as it is. It
	// returns nil once the event is durable.
	Publish(ctx context.Context, topic string, event any, opts ...PublishOption) error
	// PublishMessages publishes all msgs in one call. Its error is a *PublishError, index-aligned
	// with msgs.
	PublishMessages(ctx context.Context, topic string, msgs ...*Message) error
}

// Bus is an open connection to a broker, for publishing and for routers. It is safe for concurrent
// use.
type Bus struct {
	driver  Driver
	broker  string
	limit   int
	options options
	inbox   inbox

	closing   sync.Once
	closed    chan struct{}
	closeErr  error
	closeDone chan struct{}
}

// New makes a bus over a driver; from then on the bus owns the driver. Applications use [Open] or
// an adapter's Open.
func New(d Driver, opts ...Option) *Bus { return newBus(d, newOptions(opts)) }

func newBus(d Driver, o options) *Bus {
	c := d.Capabilities()
	return &Bus{driver: d, broker: c.Broker, limit: c.MaxMessage, options: o, closed: make(chan struct{}), closeDone: make(chan struct{})}
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
	if err := CheckName("topic", topic); err != nil {
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

// Driver returns the driver. Routers and drivers call it; applications use [As].
func (b *Bus) Driver() Driver { return b.driver }

// Logger returns the bus's log, never nil.
func (b *Bus) Logger() *slog.Logger { return b.options.logger }

// Decode decodes a message's payload into v. The message's content type names the codec.
func (b *Bus) Decode(m *Message, v any) error { return decode(b.options.codecs, m, v) }

// Ping asks the broker for a sign of life. Where the driver cannot ask, Ping returns nil while the
// bus is open.
func (b *Bus) Ping(ctx context.Context) error {
	select {
	case <-b.closed:
		return &Error{Op: "ping", Broker: b.broker, Err: ErrClosed}
	default:
	}
	if p, ok := As[interface {
		Ping(ctx context.Context) error
	}](b); ok { // driver.Pinger
		return p.Ping(ctx)
	}
	return nil
}

// Close is [Bus.Shutdown] bounded by the close timeout ([WithCloseTimeout], 10 s by default).
func (b *Bus) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), b.options.closeTimeout)
	defer cancel()
	return b.Shutdown(ctx)
}

// Shutdown ends pending requests, waits within ctx for pending publishes, then closes the driver.
// Close the routers first: after Shutdown a running handler cannot settle any more. It is
// idempotent and safe for concurrent use: each call waits for the one close and returns its error.
func (b *Bus) Shutdown(ctx context.Context) error {
	b.closing.Do(func() {
		close(b.closed)
		go func() {
			defer close(b.closeDone)
			b.inbox.close(ctx)
			b.closeErr = b.driver.Close(ctx)
		}()
	})
	select {
	case <-b.closeDone:
		return b.closeErr
	case <-ctx.Done():
		return &Error{Op: "close", Broker: b.broker, Err: ctx.Err()}
	}
}

// As finds T in the driver: the native client (*kgo.Client, *pgxpool.Pool, …: see each adapter's
// documentation) or one of the optional abilities in package bus/driver.
func As[T any](b *Bus) (T, bool) {
	if v, ok := b.driver.(T); ok {
		return v, true
	}
	var v T
	if d, ok := b.driver.(interface{ As(target any) bool }); ok && d.As(&v) {
		return v, true
	}
	return v, false
}
