package watermill_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
)

// ending is a pub/sub with subscriptions that end at once, or after one message if they have one.
type ending struct {
	subscribed int
	messages   []*message.Message
}

// Publish implements message.Publisher.
func (*ending) Publish(string, ...*message.Message) error { return nil }

// Subscribe implements message.Subscriber.
func (e *ending) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	e.subscribed++
	out := make(chan *message.Message, 1)
	if len(e.messages) > 0 {
		out <- e.messages[0]
		e.messages = e.messages[1:]
	}
	close(out)
	return out, nil
}

// Close implements message.Publisher and message.Subscriber.
func (*ending) Close() error { return nil }

// TestSubscriptionsThatEnd are made again, the first time at once, and then with pauses that grow,
// as long as no message comes.
func TestSubscriptionsThatEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &ending{}
		for range 20 {
			e.messages = append(e.messages, message.NewMessage("id", nil))
		}
		b := closing(t, bus.New(watermill.Driver(e, func(string) (message.Subscriber, error) { return e, nil }, watermill.Config{})))
		s, err := b.Driver().Subscribe(t.Context(), bus.Subscription{Topic: "t", Group: "g", InFlight: 1, Bytes: 1}, quiet{})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		for range 20 {
			if n, err := s.Receive(t.Context(), make([]bus.Delivery, 1), 1); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		if took := time.Since(begun); took > 0 {
			t.Errorf("20 messages took %v", took)
		}
		e.subscribed = 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Receive(ctx, make([]bus.Delivery, 1), 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if e.subscribed < 10 || e.subscribed > 40 {
			t.Errorf("subscribed %d times in a minute", e.subscribed)
		}
	})
}
