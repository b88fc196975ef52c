package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
)

// customers is how many keys the orders have, interval how far they are apart.
const (
	customers = 20
	interval  = 2 * time.Millisecond
)

// publishFunc publishes one order.
type publishFunc func(ctx context.Context, id, customer string, payload []byte) error

// viaWatermill publishes as the old service always has: the customer is metadata, from which its
// marshaler takes the partition key.
func viaWatermill(pub message.Publisher, topic string) publishFunc {
	return func(_ context.Context, id, customer string, payload []byte) error {
		w := message.NewMessage(id, payload)
		w.Metadata.Set("customer", customer)
		return pub.Publish(topic, w)
	}
}

// viaMillrace publishes as the new service does: the customer is the key. The header is for old
// consumers.
func viaMillrace(b *bus.Bus, topic string) publishFunc {
	return func(ctx context.Context, id, customer string, payload []byte) error {
		return b.PublishMessages(ctx, topic, &bus.Message{
			ID: id, Key: customer, ContentType: "application/json", Payload: payload, Headers: bus.Headers{{Name: "customer", Value: customer}},
		})
	}
}

// load publishes orders until it is stopped. Its publisher can be changed on the way.
type load struct {
	publish atomic.Pointer[publishFunc]
	stop    context.CancelFunc
	over    chan struct{}
	err     error // once over is closed
}

func (l *load) via(p publishFunc) { l.publish.Store(&p) }

func startLoad(ctx context.Context, led *ledger, p publishFunc) *load {
	l := &load{over: make(chan struct{})}
	l.via(p)
	running, stop := context.WithCancel(ctx)
	l.stop = stop
	go func() {
		defer close(l.over)
		l.err = l.run(ctx, running, led)
	}()
	return l
}

func (l *load) run(ctx, running context.Context, led *ledger) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	nth := map[string]int{}
	for n := 1; ; n++ {
		select {
		case <-running.Done():
			return nil
		case <-tick.C:
		}
		customer := fmt.Sprintf("customer-%d", n%customers)
		nth[customer]++
		o := Order{Number: n, Customer: customer, Nth: nth[customer]}
		payload, err := json.Marshal(o)
		if err != nil {
			return err
		}
		led.publish(o)
		// ctx, not running: an order that was begun is published to its end.
		if err := (*l.publish.Load())(ctx, bus.NewID(), customer, payload); err != nil {
			return fmt.Errorf("publish order %d: %w", n, err)
		}
	}
}

// end stops the load and waits for what is under way.
func (l *load) end() error {
	l.stop()
	<-l.over
	return l.err
}
