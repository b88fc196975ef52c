package rabbitmq

import (
	"context"
	"regexp"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/conformance"
	"github.com/millrace-go/millrace/internal/testlog"
)

func TestConformance(t *testing.T) {
	testlog.Expect(t, "") // most checks make handlers fail; those of ways/* read a log of their own
	c := brokerConfig(t)
	used := &names{topics: map[string]map[string]bool{}, poison: map[string]bool{}}
	t.Cleanup(func() { used.delete(t, c) })
	conformance.RunWith(t, used.open(c, maxParked), conformance.Options{RawPoison: rawPoison})
}

// TestFewAreParked: the suite's check of a lane that is full, at the driver's own bound.
func TestFewAreParked(t *testing.T) {
	testlog.Expect(t, "")
	c := brokerConfig(t)
	used := &names{topics: map[string]map[string]bool{}, poison: map[string]bool{}}
	t.Cleanup(func() { used.delete(t, c) })
	const room = 30
	conformance.RunWith(t, used.open(c, room), conformance.Options{Run: regexp.MustCompile("^parking/full-lane$"), ParkedRoom: room})
}

// open opens buses whose lanes have room for so many parked messages.
func (n *names) open(c Config, room int) conformance.Open {
	return func(ctx context.Context) (*bus.Bus, error) {
		d, err := open(ctx, c)
		if err != nil {
			return nil, err
		}
		d.parking.room = room
		return bus.New(&noting{d, n}), nil
	}
}

// rawPoison publishes to the stream of a group's poison queue.
func rawPoison(ctx context.Context, b *bus.Bus, group string, record []byte) error {
	return b.Driver().(*noting).pub.send(ctx, 1, func(_ int, x *amqplink.Parcel) error {
		x.Key, x.Publishing = poisonName(group), amqp.Publishing{Body: record}
		return nil
	})
}

// names are the topics and groups that the suite used, which it leaves behind.
type names struct {
	mu     sync.Mutex
	topics map[string]map[string]bool // and their groups
	poison map[string]bool
}

func (n *names) add(topic, group string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.topics[topic] == nil {
		n.topics[topic] = map[string]bool{}
	}
	n.topics[topic][group] = true
}

func (n *names) delete(t *testing.T, c Config) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for topic, groups := range n.topics {
		var gs []string
		for g := range groups {
			gs = append(gs, g)
		}
		deleteTopic(t, c, topic, gs)
	}
	d := openDriver(t, c)
	admin(t, d, func(tp *topology) error {
		for group := range n.poison {
			if err := tp.deleteQueue(poisonName(group)); err != nil {
				return err
			}
		}
		return nil
	})
}

// noting is a driver that notes the names.
type noting struct {
	*busDriver
	names *names
}

func (n *noting) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	n.names.add(topic, "")
	return n.busDriver.Publish(ctx, topic, msgs)
}

func (n *noting) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	n.names.add(s.Topic, s.Group)
	return n.busDriver.Subscribe(ctx, s, o)
}

func (n *noting) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	n.names.mu.Lock()
	n.names.poison[group] = true
	n.names.mu.Unlock()
	return n.busDriver.Poison(ctx, group)
}
