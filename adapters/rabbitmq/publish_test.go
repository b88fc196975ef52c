package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
)

// admin runs f with a channel beside the driver's own.
func admin(t testing.TB, d *busDriver, f func(tp *topology) error) {
	t.Helper()
	tp := &topology{session: d.pub.link.Current()}
	defer tp.close()
	if err := f(tp); err != nil {
		t.Fatal(err)
	}
}

// Messages beyond the bound of a topic without groups are refused, for sure.
func TestUnroutedFull(t *testing.T) {
	for _, queue := range []string{Quorum, Classic} {
		t.Run(queue, func(t *testing.T) {
			topic := newTopic(t, "g")
			c := brokerConfig(t)
			c.Unrouted, c.Queue = 10, queue
			d := openDriver(t, c)
			var accepted int
			for i := range 4 {
				err := d.Publish(testContext(t), topic, messages(i*10, i*10+10, 1))
				if err == nil {
					accepted += 10
					continue
				}
				for k, e := range err.(*bus.PublishError).Errs {
					switch {
					case e == nil:
						accepted++
					case !bus.IsDefinite(e) || !bus.IsRetryable(e) || !strings.Contains(e.Error(), "full"):
						t.Errorf("%d: %v", i*10+k, e)
					}
				}
			}
			// A quorum queue's bound is looked at after the fact, so a batch may go beyond it.
			if accepted < 10 || accepted > 30 {
				t.Errorf("%d accepted, want about 10", accepted)
			}
			s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
			got := receive(t, testContext(t), s, accepted)
			publish(t, d, topic, message("z", "z"))
			if more := receive(t, testContext(t), s, 1); more[0].ID != "z" {
				t.Errorf("%s came, and was refused before", more[0].ID)
			}
			settle(t, s, got)
		})
	}
}

// A message that no queue takes, because the queue that keeps messages is gone, is not reported as
// published.
func TestReturned(t *testing.T) {
	topic := newTopic(t)
	d := openDriver(t, brokerConfig(t))
	publish(t, d, topic, message("1", ""))
	admin(t, d, func(tp *topology) error { return tp.deleteQueue(unroutedName(topic)) })
	ms := messages(0, 2000, 7)
	ms[5].ID = ms[4].ID // two with one id
	err := d.Publish(testContext(t), topic, ms)
	pe, ok := errors.AsType[*bus.PublishError](err)
	if !ok {
		t.Fatal(err)
	}
	for i, e := range pe.Errs {
		if !errors.Is(e, amqplink.ErrReturned) || !bus.IsDefinite(e) || !bus.IsRetryable(e) {
			t.Fatalf("%d: %v", i, e)
		}
	}
	publish(t, d, topic, message("2", "")) // declared again
}

// The topic's exchange is gone: the broker closes the channel, and everything works again
// afterwards.
func TestExchangeIsMadeAgain(t *testing.T) {
	topic := newTopic(t)
	d := openDriver(t, brokerConfig(t))
	publish(t, d, topic, message("1", ""))
	admin(t, d, func(tp *topology) error {
		ch, err := tp.channel()
		if err != nil {
			return err
		}
		return ch.ExchangeDelete(topic, false, false)
	})
	for n := 0; ; n++ {
		err := d.Publish(testContext(t), topic, []*bus.Message{message("2", "")})
		if err == nil {
			break
		}
		if bus.IsDefinite(err) && errors.Is(err, amqplink.ErrReturned) || !bus.IsRetryable(err) || n > 1 {
			t.Fatal(n, err)
		}
	}
}

// Somebody else's exchange has the topic's name.
func TestForeignExchange(t *testing.T) {
	topic := newTopic(t)
	d := openDriver(t, brokerConfig(t))
	admin(t, d, func(tp *topology) error { return tp.declareExchange(topic, amqp.ExchangeDirect, "") })
	err := d.Publish(testContext(t), topic, []*bus.Message{message("1", "")})
	if !bus.IsDefinite(err) || bus.IsRetryable(err) || !strings.Contains(err.Error(), "direct") {
		t.Error(err)
	}
	if _, err := d.Subscribe(testContext(t), bus.Subscription{Topic: topic, Group: "g", InFlight: 1, Bytes: 1}, newObserver()); err == nil || bus.IsRetryable(err) {
		t.Error(err)
	}
}

func TestPublishContext(t *testing.T) {
	topic := newTopic(t)
	d := openDriver(t, brokerConfig(t))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := d.Publish(ctx, topic, messages(0, 2, 1))
	if !bus.IsDefinite(err) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := d.Publish(context.Background(), "a:b", messages(0, 1, 1)); !errors.Is(err, bus.ErrInvalid) {
		t.Error(err)
	}
	if err := d.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(context.Background(), topic, messages(0, 1, 1)); !errors.Is(err, bus.ErrClosed) || !bus.IsDefinite(err) {
		t.Error(err)
	}
	if _, err := d.Subscribe(context.Background(), bus.Subscription{Topic: topic, Group: "g", InFlight: 1, Bytes: 1}, newObserver()); !errors.Is(err, bus.ErrClosed) {
		t.Error(err)
	}
	if _, err := d.Poison(context.Background(), "g"); !errors.Is(err, bus.ErrClosed) {
		t.Error(err)
	}
}

// Publishing leaves the messages as they are, and recycled tables carry nothing over.
func TestPublishLeavesMessages(t *testing.T) {
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	for i := range 20 {
		m := message(fmt.Sprint(i), "")
		if i%2 == 0 {
			m.Headers.Add(fmt.Sprintf("h%d", i), "v")
			m.Payload = nil
		}
		before := fmt.Sprintf("%+v", *m) + fmt.Sprint(m.Headers)
		publish(t, d, topic, m)
		if after := fmt.Sprintf("%+v", *m) + fmt.Sprint(m.Headers); before != after {
			t.Error(before, after)
		}
		got := receive(t, testContext(t), s, 1)
		if len(got[0].Headers) != (i+1)%2 || (got[0].Payload == nil) != (i%2 == 0) {
			t.Errorf("%d: %v %v", i, got[0].Message, got[0].Headers)
		}
		settle(t, s, got)
	}
}

// A queue does not confirm: nobody can publish to its topic any more. All other topics work as
// before. The same holds for the queues that the driver itself writes to.
func TestOneQueueDoesNotConfirm(t *testing.T) {
	sick, well := newTopic(t), newTopic(t)
	p, c := newProxy(t)
	p.mute(sick)
	d := openDriver(t, c)
	publishFor := func(topic string, n int) error {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		return d.Publish(ctx, topic, messages(0, n, 10))
	}
	for range 3 {
		if err := publishFor(sick, strands*amqplink.PipelineMessages); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
	err := publishFor(sick, 10)
	if !bus.IsDefinite(err) || !bus.IsRetryable(err) {
		t.Errorf("beyond the bound: %v", err)
	}
	for range 3 {
		publish(t, d, well, messages(0, 4*amqplink.PipelineMessages, 10)...)
	}
	errs := d.pub.sendEach(testContext(t), 4, func(i int, x *amqplink.Parcel) error {
		x.Key, x.Publishing = unroutedName(well), marker(markWake)
		if i == 2 {
			return bus.ErrInvalid
		}
		return nil
	})
	if len(errs) != 4 || errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], bus.ErrInvalid) || errs[3] != nil {
		t.Error(errs)
	}
}
