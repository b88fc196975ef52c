package bus

import (
	"context"
	"log/slog"
	"sync"
)

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
