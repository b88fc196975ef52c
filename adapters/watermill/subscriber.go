package watermill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// SubscriberConfig configures a [Subscriber]. A field that is zero has its default.
type SubscriberConfig struct {
	// Start is where the group begins on a topic that it has not seen. Defaults to bus.Earliest.
	Start bus.Start
	// Unacked is how many messages of a subscription may be out at the same time without an Ack,
	// each of another key or without one. Defaults to 64. 1 is the letter of Watermill's contract,
	// and one handler at a time.
	Unacked int
	// NackDelay is after how long a nacked message comes again. Defaults to 100 ms.
	NackDelay time.Duration
	// CloseTimeout is how long an ending subscription waits for the Ack or Nack of its open
	// messages. Then they come again, to the next subscription. Defaults to 10 s.
	CloseTimeout time.Duration
}

// Defaults of SubscriberConfig.
const (
	DefaultUnacked      = 64
	DefaultNackDelay    = 100 * time.Millisecond
	DefaultCloseTimeout = 10 * time.Second
)

func (c *SubscriberConfig) complete() error {
	for _, f := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{{"NackDelay", &c.NackDelay, DefaultNackDelay}, {"CloseTimeout", &c.CloseTimeout, DefaultCloseTimeout}} {
		if *f.value < 0 {
			return fmt.Errorf("%w: SubscriberConfig.%s is %v: want 0 (the default) or more", bus.ErrInvalid, f.name, *f.value)
		}
		if *f.value == 0 {
			*f.value = f.def
		}
	}
	if c.Unacked < 0 {
		return fmt.Errorf("%w: SubscriberConfig.Unacked is %d: want 0 (the default) or more", bus.ErrInvalid, c.Unacked)
	}
	if c.Unacked == 0 {
		c.Unacked = DefaultUnacked
	}
	return nil
}

// Subscriber makes a bus the Watermill subscriber of a group. It is a
// [message.SubscribeInitializer], too.
//
// Messages of one key come one at a time, in order, the next after the Ack of the former. Messages
// of other keys come meanwhile. Ack settles; Nack brings the message again, to this subscription,
// before the later ones of its key. A message's context ends with its Ack or Nack, and with
// Subscribe's context. It also ends when the process may no longer settle the message, or when an
// ending subscription has waited CloseTimeout for it. Acks that come while it waits count.
//
// Close ends the subscriptions, not the bus.
func Subscriber(b *bus.Bus, group string, c SubscriberConfig) (message.Subscriber, error) {
	if err := driver.CheckName("group", group); err != nil {
		return nil, err
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	return &subscriber{bus: b, group: group, config: c, closing: make(chan struct{})}, nil
}

type subscriber struct {
	bus    *bus.Bus
	group  string
	config SubscriberConfig

	mu            sync.Mutex
	closed        bool
	closing       chan struct{}
	subscriptions sync.WaitGroup
}

// Subscribe implements message.Subscriber. It returns when the group has its place in the topic:
// the group misses no message published from then on.
func (s *subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, fmt.Errorf("subscribe %q: %w", topic, bus.ErrClosed)
	}
	s.subscriptions.Add(1)
	s.mu.Unlock()
	sub := &subscription{subscriber: s, ctx: ctx, out: make(chan *message.Message), ending: make(chan struct{}), impatient: make(chan struct{})}
	// A handler ends when its message is acked, so a message that fails here was cut off by the
	// end, and is given back.
	r := router.New(s.bus, s.group, router.Workers(s.config.Unacked), router.From(s.config.Start), router.DrainTimeout(s.config.CloseTimeout+afterPatience))
	r.HandleFunc(topic, sub.handle)
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	over := make(chan error, 1)
	go func() { over <- r.Run(run) }()
	if err := s.ready(ctx, r); err != nil {
		stop()
		err = errors.Join(err, <-over)
		s.subscriptions.Done()
		return nil, err
	}
	go func() {
		defer s.subscriptions.Done()
		defer close(sub.out)
		defer stop()
		select {
		case <-ctx.Done():
		case <-s.closing:
		case err := <-over: // it cannot go on
			s.bus.Logger().ErrorContext(ctx, "the subscription ended", "topic", topic, "group", s.group, "err", err)
			close(sub.ending)
			return
		}
		close(sub.ending)
		patience := time.AfterFunc(s.config.CloseTimeout, func() { close(sub.impatient) })
		defer patience.Stop()
		stop()
		if err := <-over; err != nil {
			s.bus.Logger().ErrorContext(ctx, "the subscription did not end cleanly", "topic", topic, "group", s.group, "err", err)
		}
	}()
	return sub.out, nil
}

// ready waits until r consumes, ctx ends or the subscriber is closed.
func (s *subscriber) ready(ctx context.Context, r *router.Router) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return r.Ready(ctx)
}

// initializing bounds SubscribeInitialize, which has no context.
const initializing = 30 * time.Second

// SubscribeInitialize implements message.SubscribeInitializer: it gives the group its place in the
// topic.
func (s *subscriber) SubscribeInitialize(topic string) error {
	ctx, cancel := context.WithTimeout(context.Background(), initializing)
	defer cancel()
	src, err := s.bus.Driver().Subscribe(ctx, bus.Subscription{Topic: topic, Group: s.group, Start: s.config.Start, InFlight: 1, Bytes: 1}, nobody{})
	if err != nil {
		return err
	}
	return src.Close(ctx)
}

// nobody observes lanes that nothing is received from.
type nobody struct{}

func (nobody) Assigned([]bus.Lane)                  {}
func (nobody) Revoking(context.Context, []bus.Lane) {}
func (nobody) Lost([]bus.Lane, error)               {}

// Close implements message.Subscriber.
func (s *subscriber) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	s.subscriptions.Wait()
	return nil
}

// subscription hands a topic's messages out.
type subscription struct {
	subscriber *subscriber
	ctx        context.Context //nolint:containedctx // Watermill's contract: it is passed on to all messages
	out        chan *message.Message

	ending    chan struct{} // nothing more is handed out
	impatient chan struct{} // open messages are given up
}

// afterPatience bounds handing back given-up messages.
const afterPatience = 10 * time.Second

// errEnding gives a message back without counting a try. The delay is so short that the router
// keeps the message until its drain, which follows at once: a longer one would store it at the
// broker.
var errEnding = bus.Postpone(errors.New("the subscription ends, and the message was not acked"), 100*time.Millisecond)

// handle returns nil when m was acked.
func (s *subscription) handle(ctx context.Context, m *bus.Message) error {
	for {
		again, err := s.offer(ctx, m)
		if !again {
			return err
		}
		t := time.NewTimer(s.subscriber.config.NackDelay)
		select {
		case <-t.C:
		case <-s.ending:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// offer hands m out once, and says whether it was nacked.
func (s *subscription) offer(ctx context.Context, m *bus.Message) (nacked bool, err error) {
	w := ToWatermill(m)
	own, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	w.SetContext(own)
	select { // an end that has begun goes before
	case <-s.ending:
		return false, errEnding
	default:
	}
	select {
	case s.out <- w:
	case <-s.ending:
		return false, errEnding
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	select {
	case <-w.Acked():
		return false, nil
	case <-w.Nacked():
		return true, nil
	case <-s.impatient:
		return false, errEnding
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
