package rabbitmq

import (
	"context"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// driver implements driver.Driver.
type busDriver struct {
	cfg     Config
	parking parkingBounds
	pub     *publisher
	consume *amqplink.Link  // made at the first Subscribe
	closing context.Context // ends when Close begins
	shut    context.CancelFunc
	closed  chan struct{} // closed when Close has ended

	mu      sync.Mutex
	sources map[*source]struct{}
	calls   sync.WaitGroup // publishes under way
	// lanes is how many lanes groups had when that was last asked: where to look first.
	lanes sync.Map
	// topicLocks are locks of topics, and of poison stores: see lockFor.
	topicLocks map[string]chan struct{}
}

func open(ctx context.Context, c Config) (*busDriver, error) {
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	l := amqplink.New(c.link(), "publish")
	if err := l.Connect(ctx); err != nil {
		return nil, fail("open", "", err)
	}
	d := &busDriver{
		cfg: c, parking: defaultParkingBounds, pub: newPublisher(c, l), consume: amqplink.New(c.link(), "consume"), closed: make(chan struct{}),
		sources: map[*source]struct{}{}, topicLocks: map[string]chan struct{}{},
	}
	d.closing, d.shut = context.WithCancel(context.Background())
	return d, nil
}

// Publish implements driver.Driver.
func (d *busDriver) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	err := driver.CheckName("topic", topic)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && !d.enter() {
		err = bus.ErrClosed
	}
	if err != nil {
		return driver.FailAll(len(msgs), &bus.Error{
			Op: "publish", Broker: broker, Topic: topic, Err: err, Definite: true, Retryable: amqplink.Retryable(err),
		})
	}
	defer d.calls.Done()
	return d.pub.publish(ctx, topic, msgs)
}

// enter counts a call that Close waits for, unless Close has begun.
func (d *busDriver) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing.Err() != nil {
		return false
	}
	d.calls.Add(1)
	return true
}

func (d *busDriver) register(s *source) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing.Err() != nil {
		return false
	}
	d.sources[s] = struct{}{}
	return true
}

func (d *busDriver) unregister(s *source) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sources, s)
}

// Capabilities implements driver.Driver.
func (d *busDriver) Capabilities() bus.Capabilities {
	return bus.Capabilities{Broker: broker, Durable: true, Parking: true, MaxMessage: d.cfg.MaxMessage}
}

// Ping implements driver.Pinger: it asks the broker on each connection that is in use.
func (d *busDriver) Ping(ctx context.Context) error {
	links := []*amqplink.Link{d.pub.link}
	if d.consume.Used() {
		links = append(links, d.consume)
	}
	for _, l := range links {
		s, err := l.Get(ctx)
		if err == nil {
			_, err = call(ctx, s, func(_ context.Context, t *topology) (*amqp.Channel, error) { return t.channel() })
		}
		if err != nil {
			return fail("ping", "", err)
		}
	}
	return nil
}

// Lag implements driver.Lagger. It counts the messages that wait in the group's queues, and the
// unsettled messages of this process's members. It does not count the messages that members in
// other processes hold, at most the in-flight bound of each, nor tell the age of the oldest
// message: RabbitMQ tells neither over AMQP. Markers of the driver's own that wait in a queue without
// an owner count as messages: a few for each lane.
func (d *busDriver) Lag(ctx context.Context, topic, group string) (lag bus.Lag, err error) {
	if err := checkNames(topic, group); err != nil {
		return lag, fail("lag", topic, err)
	}
	name := groupName(topic, group)
	s, err := d.consume.Get(ctx)
	if err != nil {
		return lag, fail("lag", topic, err)
	}
	active := 0 // consumers that may hold messages
	waiting, err := call(ctx, s, func(_ context.Context, t *topology) (int, error) {
		lanes, err := d.existingLanes(t, name)
		sum := 0
		for i := range lanes {
			for _, queue := range [...]string{laneName(name, i), earlyName(name, i)} {
				q, _, err := t.queue(queue)
				if err != nil {
					return 0, err
				}
				sum += q.Messages
				active += q.Consumers // a quorum queue counts the one that it delivers to
			}
		}
		return sum, err
	})
	if err != nil {
		return lag, fail("lag", topic, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := range d.sources {
		if s.group == name {
			unsettled, lanes := s.unsettled()
			waiting += unsettled
			active -= lanes
		}
	}
	return bus.Lag{Messages: int64(waiting), Estimated: active > 0}, nil
}

// As implements the method that bus.As looks for. It sets **amqp091.Connection to the connection
// that publishes, while there is one.
func (d *busDriver) As(target any) bool {
	t, ok := target.(**amqp.Connection)
	if !ok {
		return false
	}
	s := d.pub.link.Current()
	if s == nil {
		return false
	}
	*t = s.Conn
	return true
}

// Close implements driver.Driver. It waits for publishes that were sent; publishes that wait for a
// connection fail.
func (d *busDriver) Close(ctx context.Context) error {
	d.mu.Lock()
	first := d.closing.Err() == nil
	d.shut()
	var sources []*source
	for s := range d.sources {
		sources = append(sources, s)
	}
	d.mu.Unlock()
	if first {
		go func() {
			defer close(d.closed)
			d.end(ctx, sources)
		}()
	}
	select {
	case <-d.closed:
		return nil
	case <-ctx.Done():
		return fail("close", "", context.Cause(ctx))
	}
}

// end closes everything within ctx. Work that is still under way when ctx ends is abandoned.
func (d *busDriver) end(ctx context.Context, sources []*source) {
	d.pub.link.Stop()
	var closing sync.WaitGroup
	for _, s := range sources {
		closing.Go(func() { _ = s.Close(ctx) }) // work that is not done in time ends with the connection
	}
	called := make(chan struct{})
	go func() {
		d.calls.Wait()
		close(called)
	}()
	closing.Wait()
	select {
	case <-called:
	case <-ctx.Done():
	}
	closing.Go(func() { d.consume.Close(ctx) })
	closing.Go(func() { d.pub.link.Close(ctx) })
	closing.Wait()
}
