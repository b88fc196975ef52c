package watermill_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

type contextKey struct{}

// receive returns the next message.
func receive(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case w, ok := <-messages:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return w
	case <-t.Context().Done():
		t.Fatal("the test ended")
	case <-time.After(30 * time.Second):
		t.Fatal("no message came")
	}
	return nil
}

func subscriber(t *testing.T, b *bus.Bus, group string, c watermill.SubscriberConfig) message.Subscriber {
	t.Helper()
	sub, err := watermill.Subscriber(b, group, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sub.Close(); err != nil {
			t.Error(err)
		}
	})
	return sub
}

// TestKeysOneAtATime: the next message of a key comes after the Ack of the former, other keys'
// messages meanwhile. A Nack brings the same message again.
func TestKeysOneAtATime(t *testing.T) {
	b := open(t, "memory:")
	sub := subscriber(t, b, "g", watermill.SubscriberConfig{NackDelay: time.Millisecond})
	if err := sub.(message.SubscribeInitializer).SubscribeInitialize("t"); err != nil {
		t.Fatal(err)
	}
	publish(t, b, "t", &bus.Message{ID: "a1", Key: "a"}, &bus.Message{ID: "a2", Key: "a"}, &bus.Message{ID: "b1", Key: "b"})
	messages, err := sub.Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*message.Message{}
	for range 2 {
		w := receive(t, messages)
		out[w.UUID] = w
	}
	if out["a1"] == nil || out["b1"] == nil {
		t.Fatalf("out are %v, want a1 and b1", out)
	}
	if key := out["a1"].Metadata.Get(watermill.KeyMetadata); key != "a" {
		t.Errorf("the key is %q", key)
	}
	out["a1"].Nack()
	again := receive(t, messages)
	if again.UUID != "a1" {
		t.Fatalf("after the Nack of a1 came %s", again.UUID)
	}
	again.Ack()
	if next := receive(t, messages); next.UUID != "a2" {
		t.Errorf("after the Ack of a1 came %s", next.UUID)
	} else {
		next.Ack()
	}
	out["b1"].Ack()
}

// TestMessageContext: it has the values of Subscribe's context, ends with the Ack, and with
// Subscribe's context.
func TestMessageContext(t *testing.T) {
	b := open(t, "memory:")
	sub := subscriber(t, b, "g", watermill.SubscriberConfig{})
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), contextKey{}, "value"))
	defer cancel()
	messages, err := sub.Subscribe(ctx, "t")
	if err != nil {
		t.Fatal(err)
	}
	publish(t, b, "t", &bus.Message{ID: "1"}, &bus.Message{ID: "2"})
	one, two := receive(t, messages), receive(t, messages)
	if v := one.Context().Value(contextKey{}); v != "value" || one.Context().Err() != nil {
		t.Errorf("value %v, %v", v, one.Context().Err())
	}
	one.Ack()
	<-one.Context().Done()
	cancel()
	<-two.Context().Done()
	two.Ack() // while the subscription waits for it
	if w, ok := <-messages; ok {
		t.Errorf("%s came after the end", w.UUID)
	}
	// Both are settled: the next subscription receives only new messages.
	publish(t, b, "t", &bus.Message{ID: "3"})
	messages, err = sub.Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	if w := receive(t, messages); w.UUID != "3" {
		t.Errorf("%s came again", w.UUID)
	} else {
		w.Ack()
	}
}

// TestCloseGivesBack: a message without an Ack when the time is up comes again, to the next
// subscription.
func TestCloseGivesBack(t *testing.T) {
	b := open(t, "memory:")
	first := subscriber(t, b, "g", watermill.SubscriberConfig{CloseTimeout: time.Millisecond})
	messages, err := first.Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	publish(t, b, "t", &bus.Message{ID: "1"})
	w := receive(t, messages)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Context().Err() == nil {
		t.Error("the context of a message that was given up goes on")
	}
	w.Ack() // too late
	if _, err := first.Subscribe(t.Context(), "t"); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("subscribe after close: %v", err)
	}
	messages, err = subscriber(t, b, "g", watermill.SubscriberConfig{}).Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	if again := receive(t, messages); again.UUID != "1" {
		t.Errorf("came %s", again.UUID)
	} else {
		again.Ack()
	}
}

// TestCloseIsNoOutage: the end of a subscription gives messages back, one that is out and one that
// nobody has received, and logs neither a failure nor a pause.
func TestCloseIsNoOutage(t *testing.T) {
	b, err := bus.Open(t.Context(), "memory:", bus.WithLogger(testlog.New(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	for range 20 {
		sub := subscriber(t, b, "g", watermill.SubscriberConfig{CloseTimeout: time.Millisecond})
		messages, err := sub.Subscribe(t.Context(), "t")
		if err != nil {
			t.Fatal(err)
		}
		publish(t, b, "t", &bus.Message{}, &bus.Message{})
		receive(t, messages)
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestClosedBus: a subscription ends when its bus is closed, and a publisher reports the closed
// bus.
func TestClosedBus(t *testing.T) {
	b := open(t, "memory:")
	messages, err := subscriber(t, b, "g", watermill.SubscriberConfig{}).Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	pub := watermill.Publisher(b, watermill.PublisherConfig{})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := <-messages; ok {
		t.Error("a message came from a closed bus")
	}
	if err := pub.Publish("t", message.NewMessage("1", nil)); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("publish: %v", err)
	}
}

// TestPublisherErrors: the error says which messages failed, and those behind a failure are not
// tried.
func TestPublisherErrors(t *testing.T) {
	b := open(t, "memory:")
	pub := watermill.Publisher(b, watermill.PublisherConfig{})
	bad := message.NewMessage("bad", nil)
	bad.Metadata.Set("millrace-nonsense", "x")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	err := pub.Publish("t", message.NewMessage("1", nil), bad, message.NewMessageWithContext(ended, "2", nil), message.NewMessage("3", nil))
	pe, ok := errors.AsType[*bus.PublishError](err)
	if !ok || len(pe.Errs) != 4 || pe.Errs[0] != nil || !errors.Is(pe.Errs[1], bus.ErrInvalid) || pe.Errs[2] == nil || pe.Errs[3] == nil {
		t.Errorf("%v: %v", err, pe)
	}
	wrong := errors.New("no key")
	err = watermill.Publisher(b, watermill.PublisherConfig{Key: func(string, *message.Message) (string, error) { return "", wrong }}).Publish("t", message.NewMessage("1", nil))
	if !errors.Is(err, wrong) {
		t.Errorf("%v", err)
	}
	if err := pub.Close(); err != nil {
		t.Error(err)
	}
	if err := pub.Publish("t", message.NewMessage("4", nil)); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("publish after close: %v", err)
	}
}

func TestSubscriberConfig(t *testing.T) {
	b := open(t, "memory:")
	for _, c := range []watermill.SubscriberConfig{{Unacked: -1}, {NackDelay: -1}, {CloseTimeout: -1}} {
		if _, err := watermill.Subscriber(b, "g", c); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := watermill.Subscriber(b, "not a group", watermill.SubscriberConfig{}); !errors.Is(err, bus.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func publish(t *testing.T, b *bus.Bus, topic string, msgs ...*bus.Message) {
	t.Helper()
	if err := b.PublishMessages(t.Context(), topic, msgs...); err != nil {
		t.Fatal(err)
	}
}

// TestStopsAreNoTries: a message that was out when its subscription ended comes again as if it had
// not been tried.
func TestStopsAreNoTries(t *testing.T) {
	for _, url := range []string{"memory:", "sqlite:" + filepath.Join(t.TempDir(), "bus.db")} {
		t.Run(url[:6], func(t *testing.T) {
			b := open(t, url)
			publish(t, b, "t", &bus.Message{ID: "1", Key: "k"}, &bus.Message{ID: "2", Key: "k"})
			for range 3 {
				sub := subscriber(t, b, "g", watermill.SubscriberConfig{CloseTimeout: time.Millisecond})
				messages, err := sub.Subscribe(t.Context(), "t")
				if err != nil {
					t.Fatal(err)
				}
				if w := receive(t, messages); w.UUID != "1" {
					t.Errorf("%s came", w.UUID)
				}
				if err := sub.Close(); err != nil {
					t.Fatal(err)
				}
			}
			type try struct {
				id      string
				attempt int
				failure *bus.Failure
			}
			tries := make(chan try, 10)
			r := router.New(b, "g")
			r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
				d := bus.DeliveryFrom(ctx)
				tries <- try{m.ID, d.Attempt, d.Failure}
				return nil
			})
			run(t, r)
			for _, id := range []string{"1", "2"} {
				if got := <-tries; got != (try{id, 1, nil}) {
					t.Errorf("%+v", got)
				}
			}
		})
	}
}
