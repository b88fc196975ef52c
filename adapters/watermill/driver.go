package watermill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Subscribers makes the subscriber of a group: with Watermill the group is a property of the
// subscriber (a consumer group, a queue's name). It is called once for each subscription, which
// closes the subscriber when it ends. Where there are no groups it may return the same subscriber
// for all: wrap it so that its Close does nothing, and close it by [Config.Close].
type Subscribers func(group string) (message.Subscriber, error)

// Config describes a Watermill pub/sub. Its zero value claims nothing.
type Config struct {
	// Broker is the name in errors and reports. Defaults to "watermill".
	Broker string
	// Durable: messages and a group's position outlive the process.
	Durable bool
	// Replay: a group that comes late receives the messages published before.
	Replay bool
	// Latest: a group that is new to a topic receives the messages published from Subscribe's
	// return on, so it may start at bus.Latest. Most pub/subs subscribe in the background, and
	// would miss messages that come meanwhile.
	Latest bool
	// Batch is how many messages one Publish call may have, because it publishes all of them or
	// none. Defaults to 1: of the messages of one call Watermill does not tell which are published
	// when it fails.
	Batch int
	// UUIDBytes is how long a UUID may be, for tables with a column of fixed length. A longer id is
	// cut in the UUID, and whole in the metadata. Defaults to no limit.
	UUIDBytes int
	// MaxMessage is the largest message in bytes, if it is known.
	MaxMessage int
	// Reader makes a subscriber that is given everything that a topic has, in the order of its
	// publishing, and disturbs no group. It makes poison queues readable; nil is for pub/subs that
	// cannot do that.
	Reader func() (message.Subscriber, error)
	// Poison opens the poison stores, which may be another bus's. Defaults to the topic
	// "GROUP.poison" of the pub/sub itself: a log to which removals, too, are appended. Without a
	// Reader entries can only be put.
	Poison func(ctx context.Context, group string) (driver.PoisonStore, error)
	// Close is called when the driver is closed, after the publisher and all subscribers: for the
	// resources that they share.
	Close func() error
}

// Driver makes a driver of any Watermill publisher and the subscribers of its groups, which it then
// owns:
//
//	b := bus.New(watermill.Driver(pub, subscribers, watermill.Config{Durable: true}))
//
// The driver guarantees no more than the pub/sub does; docs/watermill.md has the conformance
// reports. A subscription is one lane, and has one message at a time where the pub/sub keeps to
// Watermill's contract (some have one per partition). So a message that waits for its retry holds
// up the others behind it, and AckDeadlines of the pub/sub go on meanwhile. Ack settles; Watermill
// does not tell whether the Ack reached the broker.
func Driver(pub message.Publisher, subscribers Subscribers, c Config) driver.Driver {
	c.Broker = cmp.Or(c.Broker, "watermill")
	c.Batch = max(c.Batch, 1)
	return &busDriver{pub: pub, subscribers: subscribers, config: c, sources: map[*source]struct{}{}}
}

type busDriver struct {
	pub         message.Publisher
	subscribers Subscribers
	config      Config

	publishing sync.WaitGroup

	mu      sync.Mutex
	sources map[*source]struct{}
	over    bool
	closing sync.Once
	err     error
}

// Capabilities implements driver.Driver.
func (d *busDriver) Capabilities() bus.Capabilities {
	c := d.config
	return bus.Capabilities{Broker: c.Broker, Durable: c.Durable, Replay: c.Replay, Serial: true, MaxMessage: c.MaxMessage}
}

func (d *busDriver) fail(op, topic string, err error) error {
	return &bus.Error{Op: op, Broker: d.config.Broker, Topic: topic, Err: err, Definite: true, Retryable: bus.IsRetryable(err)}
}

// As finds the Watermill publisher, for [bus.As].
func (d *busDriver) As(target any) bool {
	p, ok := target.(*message.Publisher)
	if ok {
		*p = d.pub
	}
	return ok
}

// Subscribe implements driver.Driver.
func (d *busDriver) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	if s.Start != bus.Earliest && (s.Start != bus.Latest || !d.config.Latest) {
		return nil, d.fail("subscribe", s.Topic, fmt.Errorf("start at %v: %w: Watermill's subscribers take no start", s.Start, bus.ErrUnsupported))
	}
	src := newSource(d, s.Topic, s.Group, o)
	d.mu.Lock()
	if d.over {
		d.mu.Unlock()
		return nil, d.fail("subscribe", s.Topic, bus.ErrClosed)
	}
	d.sources[src] = struct{}{}
	d.mu.Unlock()
	if err := within(ctx, src.subscribe); err != nil {
		_ = src.Close(ctx) // it may have subscribed too late
		d.forget(src)
		return nil, d.fail("subscribe", s.Topic, err)
	}
	return src, nil
}

func (d *busDriver) forget(s *source) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sources, s)
}

// Poison implements driver.Driver.
func (d *busDriver) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	if d.config.Poison != nil {
		return d.config.Poison(ctx, group)
	}
	return &poisonLog{driver: d, topic: group + poisonSuffix}, nil
}

// Close implements driver.Driver.
func (d *busDriver) Close(ctx context.Context) error {
	d.mu.Lock()
	d.over = true
	open := make([]*source, 0, len(d.sources))
	for s := range d.sources {
		open = append(open, s)
	}
	d.mu.Unlock()
	d.closing.Do(func() {
		var errs []error
		for _, s := range open {
			errs = append(errs, s.Close(ctx))
		}
		errs = append(errs, within(ctx, func() error {
			d.publishing.Wait() // a publisher that is closed meanwhile would drop its messages
			err := d.pub.Close()
			if d.config.Close != nil {
				err = errors.Join(err, d.config.Close())
			}
			return err
		}))
		d.err = errors.Join(errs...)
	})
	return d.err
}

// within runs f, which takes no context, and waits for it within ctx. f goes on if ctx ends.
func within(ctx context.Context, f func() error) error {
	over := make(chan error, 1)
	go func() { over <- f() }()
	select {
	case err := <-over:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
