package eventstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/reserved"
)

// Store is the event store of one topic. It is safe for concurrent use. It needs no closing:
// closing its bus ends its calls with bus.ErrClosed.
type Store struct {
	bus       *bus.Bus
	topic     string
	backend   Backend
	maxEvents int
}

// Option configures a store for [Open].
type Option func(*options)

type options struct{ shards, maxEvents int }

// Defaults and bounds of the options.
const (
	// DefaultShards and MaxShards are the default and the bound of [Shards].
	DefaultShards = 8
	MaxShards     = 256
	// DefaultMaxEvents and MostEvents are the default and the bound of [MaxEvents].
	DefaultMaxEvents = 1000
	MostEvents       = 10_000
)

// Shards sets over how many lanes a new store spreads its streams, 1 to 256. Default 8. With 1, a
// group sees all events in one order, and one of its processes handles them. A store that exists
// keeps its shards. Memory ignores the option: a topic has 16 lanes there.
func Shards(n int) Option { return func(o *options) { o.shards = n } }

// MaxEvents bounds how many events one append may write, 1 to 10,000. Default 1,000.
func MaxEvents(n int) Option { return func(o *options) { o.maxEvents = n } }

// Open opens the event store in a topic of b, and creates it if there is no such topic. Open it
// before anybody publishes or subscribes to the topic: a topic that exists cannot become a store.
//
// The error wraps bus.ErrInvalid if the topic exists and is no store, or an option or the topic's
// name is wrong. It wraps bus.ErrUnsupported if b's broker cannot compare versions (Kafka,
// RabbitMQ), or if the store's tables are missing and b must not make them (migrate=false).
//
// A message that is published or emitted to the topic is appended with [Any] to the stream that its
// key names. It fails without a key, with a delivery time, and if the stream is closed.
func Open(ctx context.Context, b *bus.Bus, topic string, opts ...Option) (*Store, error) {
	o := options{DefaultShards, DefaultMaxEvents}
	for _, opt := range opts {
		opt(&o)
	}
	s, err := open(ctx, b, topic, o)
	if err != nil {
		return nil, fmt.Errorf("eventstore: open %q: %w", topic, err)
	}
	return s, nil
}

func open(ctx context.Context, b *bus.Bus, topic string, o options) (*Store, error) {
	if err := driver.CheckName("topic", topic); err != nil {
		return nil, err
	}
	if reserved.Topic(topic) {
		return nil, fmt.Errorf("%w: topic name %q is for Millrace's own records", bus.ErrInvalid, topic)
	}
	if o.shards < 1 || o.shards > MaxShards {
		return nil, fmt.Errorf("%w: Shards is %d: want 1 to %d", bus.ErrInvalid, o.shards, MaxShards)
	}
	if o.maxEvents < 1 || o.maxEvents > MostEvents {
		return nil, fmt.Errorf("%w: MaxEvents is %d: want 1 to %d", bus.ErrInvalid, o.maxEvents, MostEvents)
	}
	host, ok := bus.As[Host](b)
	if !ok {
		return nil, fmt.Errorf("%w: %s cannot compare a stream's version and append in one step, so conflicts would go unseen; use PostgreSQL, MySQL, SQLite or memory",
			bus.ErrUnsupported, b.Driver().Capabilities().Broker)
	}
	backend, err := host.OpenStore(ctx, topic, o.shards)
	if err != nil {
		return nil, err
	}
	return &Store{bus: b, topic: topic, backend: backend, maxEvents: o.maxEvents}, nil
}

// Topic returns the name of the store's topic, for routers.
func (s *Store) Topic() string { return s.topic }

// MaxEvents returns how many events one append may write; see the option [MaxEvents].
func (s *Store) MaxEvents() int { return s.maxEvents }

// Bus returns the bus in which the store is.
func (s *Store) Bus() *bus.Bus { return s.bus }

// fail makes the error of a call. The driver's own errors say all that there is to say.
func (s *Store) fail(op, stream string, err error) error {
	if _, ok := errors.AsType[*bus.Error](err); ok {
		return err
	}
	if stream == "" {
		return fmt.Errorf("eventstore: %s in %q: %w", op, s.topic, err)
	}
	return fmt.Errorf("eventstore: %s stream %q in %q: %w", op, stream, s.topic, err)
}
