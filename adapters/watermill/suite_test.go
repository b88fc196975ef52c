package watermill_test

import (
	"cmp"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
)

// features are the suite's demands, the same for every driver. ExactlyOnceDelivery would be untrue
// (a crash repeats), and makes the suite leave tests out.
var features = tests.Features{ConsumerGroups: true, GuaranteedOrder: true, Persistent: true}

// pubSub makes a group's publisher and subscriber on a bus. One key for each payload, because the
// suite demands order among messages of equal payload, and gives them no key.
func pubSub(t *testing.T, b *bus.Bus, group string) (message.Publisher, message.Subscriber) {
	t.Helper()
	sub, err := watermill.Subscriber(b, group, watermill.SubscriberConfig{NackDelay: time.Millisecond, CloseTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return watermill.Publisher(b, watermill.PublisherConfig{Key: func(_ string, m *message.Message) (string, error) {
		return string(m.Payload), nil
	}}), sub
}

// TestWatermillSuite is Watermill's own suite for pub/subs over each of our drivers.
func TestWatermillSuite(t *testing.T) {
	for _, n := range natives {
		t.Run(n.name, func(t *testing.T) {
			b := open(t, n.url(t))
			group := name("g")
			grouped := func(t *testing.T, group string) (message.Publisher, message.Subscriber) { return pubSub(t, b, group) }
			tests.TestPubSub(t, features, func(t *testing.T) (message.Publisher, message.Subscriber) { return pubSub(t, b, group) }, grouped)
			if !b.Driver().Capabilities().Replay { // a late group gets only what is published after it came
				return
			}
			t.Run("TestNewSubscriberReceivesOldMessages", func(t *testing.T) {
				f := features
				f.NewSubscriberReceivesOldMessages = true
				each := func(t *testing.T) (message.Publisher, message.Subscriber) { return pubSub(t, b, name("g")) }
				tests.TestNewSubscriberReceivesOldMessages(t, tests.TestContext{TestID: tests.NewTestID(), Features: f}, each)
			})
		})
	}
}

// TestWatermillStress is the suite several times at once (STRESS_TEST_COUNT), each time with fewer
// messages.
func TestWatermillStress(t *testing.T) {
	for _, n := range natives {
		t.Run(n.name, func(t *testing.T) {
			t.Setenv("STRESS_TEST_COUNT", cmp.Or(os.Getenv("STRESS_TEST_COUNT"), "3"))
			b := open(t, n.url(t))
			f := features
			f.ForceShort = true
			grouped := func(t *testing.T, group string) (message.Publisher, message.Subscriber) { return pubSub(t, b, group) }
			group := name("g")
			tests.TestPubSubStressTest(t, f, func(t *testing.T) (message.Publisher, message.Subscriber) { return pubSub(t, b, group) }, grouped)
		})
	}
}
