package watermill_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	wm "github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	wmmiddleware "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// run runs a router until the test ends.
func run(t *testing.T, r *router.Router) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	if err := r.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// runWatermill runs a Watermill router until the test ends.
func runWatermill(t *testing.T, r *message.Router) {
	t.Helper()
	over := make(chan error, 1)
	go func() { over <- r.Run(context.Background()) }()
	t.Cleanup(func() {
		if err := errors.Join(r.Close(), <-over); err != nil {
			t.Error(err)
		}
	})
	<-r.Running()
}

func watermillRouter(t *testing.T) *message.Router {
	t.Helper()
	r, err := message.NewRouter(message.RouterConfig{}, wm.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestWatermillMiddlewareInOurRouter: it retries, bounds the time and changes the message, and our
// handler sees it.
func TestWatermillMiddlewareInOurRouter(t *testing.T) {
	b := open(t, "memory:")
	r := router.New(b, "g")
	r.Use(
		watermill.Middleware(wmmiddleware.Retry{MaxRetries: 2, InitialInterval: time.Millisecond}.Middleware),
		watermill.Middleware(func(h message.HandlerFunc) message.HandlerFunc {
			return func(w *message.Message) ([]*message.Message, error) {
				w.Metadata.Set("tenant", "x")
				w.SetContext(context.WithValue(w.Context(), contextKey{}, "value"))
				return h(w)
			}
		}),
	)
	var tries []int
	done := make(chan struct{})
	r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
		if m.Headers.Get("tenant") != "x" || m.Key != "k" || m.Type != "type" || ctx.Value(contextKey{}) != "value" || bus.DeliveryFrom(ctx).Topic != "t" {
			t.Errorf("%v with %v", m, m.Headers)
		}
		tries = append(tries, bus.DeliveryFrom(ctx).Attempt)
		if len(tries) < 3 {
			return errors.New("not yet")
		}
		close(done)
		return nil
	})
	run(t, r)
	publish(t, b, "t", &bus.Message{ID: "1", Key: "k", Type: "type"})
	<-done
	if !slices.Equal(tries, []int{1, 1, 1}) {
		t.Errorf("tries %v: the retries were not Watermill's", tries)
	}
}

// TestWatermillHandlerInOurRouter: the handler's messages are published with its success, and only
// then.
func TestWatermillHandlerInOurRouter(t *testing.T) {
	b := open(t, "memory:")
	r := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Millisecond}})
	failed := false
	r.Handle("in", watermill.Handler(func(w *message.Message) ([]*message.Message, error) {
		out := message.NewMessage("out-of-"+w.UUID, w.Payload)
		if !failed {
			failed = true
			return []*message.Message{out}, errors.New("at first")
		}
		return []*message.Message{out}, nil
	}, "out"))
	got := make(chan string, 2)
	r.HandleFunc("out", func(_ context.Context, m *bus.Message) error {
		got <- m.ID + string(m.Payload)
		return nil
	})
	run(t, r)
	publish(t, b, "in", &bus.Message{ID: "1", Payload: []byte("!")})
	if s := <-got; s != "out-of-1!" {
		t.Errorf("%q was produced", s)
	}
}

// TestOurMiddlewareInWatermillsRouter: the middleware sees the message, its outcome and the events
// after success.
func TestOurMiddlewareInWatermillsRouter(t *testing.T) {
	b := open(t, "memory:")
	var mu sync.Mutex
	var log []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, s)
	}
	mw := bus.Around(func(ctx context.Context, c bus.Call) error {
		d := bus.DeliveryFrom(ctx)
		for m := range c.Messages() {
			note("before " + m.ID + " of " + d.Topic + " by " + d.Handler)
			if err := bus.OnSuccess(ctx, func(context.Context) error { note("after success"); return nil }); err != nil {
				return err
			}
			if err := bus.Emit(ctx, "emitted", &bus.Message{ID: "of-" + m.ID}); err != nil {
				return err
			}
		}
		err := c.Next(context.WithValue(ctx, contextKey{}, "value"))
		if err != nil {
			note(err.Error())
		}
		return err
	})
	sub := subscriber(t, b, "g", watermill.SubscriberConfig{NackDelay: time.Millisecond})
	emitted, err := sub.Subscribe(t.Context(), "emitted")
	if err != nil {
		t.Fatal(err)
	}
	produced, err := sub.Subscribe(t.Context(), "produced")
	if err != nil {
		t.Fatal(err)
	}
	r := watermillRouter(t)
	r.AddMiddleware(watermill.HandlerMiddleware(b, mw))
	calls := 0
	r.AddHandler("h", "t", sub, "produced", watermill.Publisher(b, watermill.PublisherConfig{}), func(w *message.Message) ([]*message.Message, error) {
		if calls++; calls == 1 {
			return nil, errors.New("fails")
		}
		if w.Context().Value(contextKey{}) != "value" {
			t.Error("the middleware's context is lost")
		}
		return message.Messages{message.NewMessage("p", nil)}, nil
	})
	runWatermill(t, r)
	publish(t, b, "t", &bus.Message{ID: "1"})
	w := receive(t, emitted)
	w.Ack()
	p := receive(t, produced)
	p.Ack()
	if w.UUID != "of-1" || p.UUID != "p" {
		t.Errorf("emitted %s, produced %s", w.UUID, p.UUID)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"before 1 of t by h", "fails", "before 1 of t by h", "after success"}; !slices.Equal(log, want) {
		t.Errorf("%q, want %q", log, want)
	}
}

// TestForwarder: Watermill's forwarder and ours read each other's envelopes.
func TestForwarder(t *testing.T) {
	for _, ours := range []bool{true, false} {
		b := open(t, "memory:")
		pub := watermill.Publisher(b, watermill.PublisherConfig{})
		sub := subscriber(t, b, "g", watermill.SubscriberConfig{})
		arrived, err := sub.Subscribe(t.Context(), "orders")
		if err != nil {
			t.Fatal(err)
		}
		if ours {
			r := router.New(b, "forwarder")
			r.Handle("outbox", watermill.Forward(b))
			run(t, r)
			w := message.NewMessage("1", []byte("x"))
			w.Metadata.Set("a", "b")
			w.Metadata.Set(watermill.KeyMetadata, "k")
			if err := forwarder.NewPublisher(pub, forwarder.PublisherConfig{ForwarderTopic: "outbox"}).Publish("orders", w); err != nil {
				t.Fatal(err)
			}
		} else {
			f, err := forwarder.NewForwarder(subscriber(t, b, "forwarder", watermill.SubscriberConfig{}), pub, wm.NopLogger{}, forwarder.Config{ForwarderTopic: "outbox"})
			if err != nil {
				t.Fatal(err)
			}
			over := make(chan error, 1)
			go func() { over <- f.Run(context.Background()) }()
			<-f.Running()
			defer func() {
				if err := errors.Join(f.Close(), <-over); err != nil {
					t.Error(err)
				}
			}()
			wrapped, err := watermill.Wrap("orders", &bus.Message{ID: "1", Key: "k", Payload: []byte("x"), Headers: bus.Headers{{Name: "a", Value: "b"}}})
			if err != nil {
				t.Fatal(err)
			}
			publish(t, b, "outbox", wrapped)
		}
		w := receive(t, arrived)
		if w.UUID != "1" || string(w.Payload) != "x" || w.Metadata.Get("a") != "b" || w.Metadata.Get(watermill.KeyMetadata) != "k" {
			t.Errorf("ours: %v: %+v", ours, w)
		}
		w.Ack()
	}
	if _, _, err := watermill.Unwrap(&bus.Message{Payload: []byte("?")}); !bus.IsPermanent(err) || !errors.Is(err, bus.ErrUndecodable) {
		t.Errorf("no envelope: %v", err)
	}
	if _, _, err := watermill.Unwrap(&bus.Message{Payload: []byte("{}")}); !bus.IsPermanent(err) {
		t.Errorf("no topic: %v", err)
	}
}

// TestAnyPubSub: a pub/sub of anyone's as a driver, its subscriptions ended behind our back.
func TestAnyPubSub(t *testing.T) {
	g := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, wm.NopLogger{})
	cancels := make(chan context.CancelFunc, 4)
	b := closing(t, bus.New(watermill.Driver(g, func(string) (message.Subscriber, error) {
		ctx, cancel := context.WithCancel(context.Background())
		cancels <- cancel
		return &cancelled{g, ctx}, nil
	}, watermill.Config{Close: g.Close})))
	r := router.New(b, "g")
	got := make(chan string, 10)
	r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
		got <- m.ID
		return nil
	})
	run(t, r)
	publish(t, b, "t", &bus.Message{ID: "1"})
	if id := <-got; id != "1" {
		t.Errorf("got %s", id)
	}
	(<-cancels)() // the pub/sub ends the subscription, and the next one is given everything again
	if id := <-got; id != "1" {
		t.Errorf("got %s", id)
	}
	defer (<-cancels)()
	if p, ok := bus.As[message.Publisher](b); !ok || p != message.Publisher(g) {
		t.Error("the native publisher is not found")
	}
	if _, err := b.Driver().Subscribe(t.Context(), bus.Subscription{Topic: "t", Group: "h", Start: bus.Latest, InFlight: 1, Bytes: 1}, nil); !errors.Is(err, bus.ErrUnsupported) {
		t.Errorf("latest: %v", err)
	}
}

// cancelled is a subscriber with subscriptions that end with a context.
type cancelled struct {
	*gochannel.GoChannel
	ctx context.Context
}

func (c *cancelled) Subscribe(_ context.Context, topic string) (<-chan *message.Message, error) {
	return c.GoChannel.Subscribe(c.ctx, topic)
}

func (c *cancelled) Close() error { return nil }
