package rabbitmq

import (
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
)

// The guards against regressions count: they hold on any machine.

func guardMessage() *bus.Message {
	return &bus.Message{
		ID: bus.NewID(), Key: "k", Source: "/s", Type: "t", ContentType: "application/json", Time: time.Now(), Payload: []byte("{}"),
	}
}

// Headers are values of an AMQP table. Each value is an allocation, and so is the text of the time.
// The race detector makes the pool forget a table now and then.
func TestEncodeBudget(t *testing.T) {
	const budget = 7 + 1
	m := guardMessage()
	if n := testing.AllocsPerRun(1000, func() {
		p, err := encode(m, amqplink.FrameSize)
		if err != nil {
			t.Fatal(err)
		}
		amqplink.Recycle(p.Headers)
	}); n > budget {
		t.Errorf("encode allocates %v times a message, want %d", n, budget)
	}
}

// The message is one allocation, its headers another. The race detector makes one more.
func TestDecodeBudget(t *testing.T) {
	for _, tc := range []struct {
		name    string
		headers bus.Headers
		budget  float64
	}{
		{"plain", nil, 1},
		{"headers", bus.Headers{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}}, 2 + 1},
	} {
		m := guardMessage()
		m.Headers = tc.headers
		p, err := encode(m, amqplink.FrameSize)
		if err != nil {
			t.Fatal(err)
		}
		d := amqp.Delivery{Headers: p.Headers, ContentType: p.ContentType, MessageId: p.MessageId, Type: p.Type, Timestamp: p.Timestamp, Body: p.Body}
		if n := testing.AllocsPerRun(1000, func() { decode(&d) }); n > tc.budget {
			t.Errorf("%s: decode allocates %v times a message, want %v", tc.name, n, tc.budget)
		}
	}
}

// A call costs one publish a message, and nothing else: no question, no channel.
func TestFramesOfPublish(t *testing.T) {
	const total = 500
	p, c := newProxy(t)
	topic := newTopic(t)
	d := openDriver(t, c)
	publish(t, d, topic, messages(0, 10, 10)...) // declares the topic, and opens its pipelines
	p.count()
	publish(t, d, topic, messages(0, total, 10)...)
	if sent := p.count(); len(sent) != 1 || sent[method{60, 40}] != total {
		t.Errorf("%v methods for %d messages", sent, total)
	}
}

// Messages settled in order go with one ack, however many they are. Enough messages for an ack are
// acked at once.
func TestFramesOfSettle(t *testing.T) {
	const calls, perCall = 10, 64
	p, c := newProxy(t)
	c.Lanes = 1
	topic := newTopic(t, "g")
	s := subscribe(t, openDriver(t, c), bus.Subscription{Topic: topic, Group: "g", InFlight: 2000}, newObserver())
	publish(t, openDriver(t, brokerConfig(t)), topic, messages(0, calls*perCall, 10)...)
	got := receive(t, testContext(t), s, calls*perCall)
	if err := s.(*source).Commit(testContext(t)); err != nil { // the wake marker
		t.Fatal(err)
	}
	p.count()
	for i := range calls {
		settle(t, s, got[i*perCall:(i+1)*perCall])
	}
	if err := s.(*source).Commit(testContext(t)); err != nil { // is answered behind the acks
		t.Fatal(err)
	}
	if sent := p.count(); sent[method{60, 80}] != calls {
		t.Errorf("%v methods for %d calls", sent, calls)
	}
}

// Durable queues confirm published messages, replicated queues by default.
func TestDurability(t *testing.T) {
	for _, queue := range []string{Quorum, Classic} {
		t.Run(queue, func(t *testing.T) {
			ctx := testContext(t)
			topic := newTopic(t, "g")
			c := brokerConfig(t)
			c.Lanes = 2
			if queue != Quorum {
				c.Queue = queue
			}
			d := openDriver(t, c)
			s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
			session, err := d.pub.link.Get(ctx)
			if err != nil {
				t.Fatal(err)
			}
			tp := &topology{session: session}
			defer tp.close()
			group := groupName(topic, "g")
			other := Classic
			if queue == Classic {
				other = Quorum
			}
			for _, name := range []string{unroutedName(topic), laneName(group, 0), laneName(group, 1), parkedName(group, 0), parkedName(group, 1)} {
				args := func(queue string) amqp.Table {
					if name == unroutedName(topic) {
						return unroutedArgs(Config{Queue: queue, Unrouted: DefaultUnrouted}, session.Conn.Properties)
					}
					return laneArgs(queue, session.Conn.Properties)
				}
				if is := refused(t, tp, name, false, args(queue)); !strings.Contains(is, "'durable'") || !strings.Contains(is, "current is 'true'") {
					t.Errorf("%s: %s", name, is)
				}
				is := refused(t, tp, name, true, args(other))
				if !strings.Contains(is, "'x-queue-type'") || !strings.Contains(is, "current is '"+queue+"'") {
					t.Errorf("%s: %s", name, is)
				}
			}
			ch, err := tp.channel()
			if err != nil {
				t.Fatal(err)
			}
			copies, err := ch.QueueDeclare("", false, true, true, false, nil)
			if err == nil {
				err = ch.QueueBind(copies.Name, "", topic, false, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			publish(t, d, topic, guardMessage())
			settle(t, s, receive(t, ctx, s, 1))
			if m, ok, err := ch.Get(copies.Name, true); !ok || err != nil || m.DeliveryMode != amqp.Persistent {
				t.Errorf("published as %d, %v, %v", m.DeliveryMode, ok, err)
			}
		})
	}
}

// refused returns the broker's answer to declaring a queue with other properties than it has.
func refused(t *testing.T, tp *topology, name string, durable bool, args amqp.Table) string {
	t.Helper()
	ch, err := tp.channel()
	if err != nil {
		t.Fatal(err)
	}
	_, err = ch.QueueDeclare(name, durable, false, false, false, args)
	if !amqplink.HasCode(err, amqp.PreconditionFailed) {
		t.Fatalf("%s: %v", name, err)
	}
	return err.Error()
}
