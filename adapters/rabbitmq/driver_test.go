package rabbitmq

import (
	"slices"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
)

func TestPublishReceiveSettle(t *testing.T) {
	for _, queue := range []string{Quorum, Classic} {
		t.Run(queue, func(t *testing.T) {
			ctx := testContext(t)
			topic := newTopic(t, "g")
			c := brokerConfig(t)
			c.Queue = queue
			d := openDriver(t, c)
			sub := bus.Subscription{Topic: topic, Group: "g"}
			o := newObserver()
			s := subscribe(t, d, sub, o)
			o.waitLanes(t, ctx, DefaultLanes)
			publish(t, d, topic, messages(0, 1000, 50)...)
			got := receive(t, ctx, s, 1000)
			checkOrder(t, got, 0, 1000)
			settle(t, s, slices.DeleteFunc(got, func(m bus.Delivery) bool { return m.ID >= "m000900" }))
			if err := s.Close(ctx); err != nil {
				t.Fatal(err)
			}
			// Settled messages are gone, the others come again, in order.
			publish(t, d, topic, messages(1000, 1100, 50)...)
			s = subscribe(t, d, sub, newObserver())
			got = receive(t, ctx, s, 200)
			checkOrder(t, got, 900, 1100)
			settle(t, s, got)
		})
	}
}

// A topic's first group gets the messages published before it came, ahead of those published
// meanwhile.
func TestUnrouted(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "first", "late")
	d := openDriver(t, brokerConfig(t))
	publish(t, d, topic, messages(0, 1000, 50)...)
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "first"}, newObserver())
	publish(t, d, topic, messages(1000, 1500, 50)...)
	got := receive(t, ctx, s, 1500)
	checkOrder(t, got, 0, 1500)
	settle(t, s, got)
	late := subscribe(t, d, bus.Subscription{Topic: topic, Group: "late"}, newObserver())
	publish(t, d, topic, messages(1500, 1600, 50)...)
	got = receive(t, ctx, late, 100)
	checkOrder(t, got, 1500, 1600)
}

// A limit of one node is no reason to give up: another node may take the connection. A vhost that
// does not exist is a reason.
func TestRetryableRefusals(t *testing.T) {
	for reason, want := range map[string]bool{
		"NOT_ALLOWED - vhost nowhere not found":                                                                          false,
		"NOT_ALLOWED - access to vhost '/' refused for user 'u': node connection limit (5) is reached":                   true,
		"NOT_ALLOWED - number of channels opened (5) has reached the negotiated channel_max (5), or the limit of a user": true,
	} {
		if got := amqplink.Retryable(&amqp.Error{Code: amqp.NotAllowed, Reason: reason}); got != want {
			t.Errorf("%s: %v", reason, got)
		}
	}
}
