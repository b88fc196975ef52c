package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	wm "github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"

	_ "github.com/millrace-go/millrace/adapters/rabbitmq"          // amqp://
	_ "github.com/millrace-go/millrace/adapters/watermill/brokers" // watermill+amqp://
	"github.com/millrace-go/millrace/bus"
)

// migrateRabbitMQ moves the handler of a queue. While both run they share the queue; the last step
// leaves the queue for Millrace's own driver, with its lanes and its order by key.
func migrateRabbitMQ(ctx context.Context, rawURL string, out io.Writer) (err error) {
	queue := "migration-" + bus.NewID()
	config := amqp.NewDurableQueueConfig(rawURL)
	config.Publish.ConfirmDelivery = true
	pub, err := amqp.NewPublisher(config, wm.NopLogger{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pub.Close()) }()
	sub, err := amqp.NewSubscriber(config, wm.NopLogger{})
	if err != nil {
		return err
	}
	if err := sub.SubscribeInitialize(queue); err != nil { // without a queue, what is published is dropped
		return errors.Join(err, sub.Close())
	}
	bridge, err := bus.Open(ctx, "watermill+"+rawURL+"?preset=queue")
	if err != nil {
		return errors.Join(err, sub.Close())
	}
	defer func() { err = errors.Join(err, bridge.Close()) }()
	native, err := bus.Open(ctx, rawURL)
	if err != nil {
		return errors.Join(err, sub.Close())
	}
	defer func() { err = errors.Join(err, native.Close()) }()

	led := newLedger()
	old, err := startWatermill(led, "watermill", queue, sub)
	if err != nil {
		return errors.Join(err, sub.Close())
	}
	load := startLoad(ctx, led, viaWatermill(pub, queue))
	running := []*service{old}
	stop := func() (err error) {
		for _, s := range running {
			err = errors.Join(err, s.stop())
		}
		running = nil
		return err
	}
	defer func() {
		err = errors.Join(err, load.end(), stop())
	}()
	step := func(text string, f func() error) {
		if err == nil {
			fmt.Fprintln(out, "rabbitmq:", text)
			err = f()
		}
	}
	start := func(who string, b *bus.Bus, topic string) error {
		s, err := startMillrace(ctx, led, who, topic, "billing", b)
		if err == nil {
			running = append(running, s)
		}
		return err
	}

	step("the Watermill service handles the orders", func() error { return led.more(ctx) })
	step("dual: a Millrace service takes from the same queue", func() error {
		return errors.Join(start("millrace on the queue", bridge, queue), led.handledBy(ctx, "millrace on the queue", 100))
	})
	step("switch: Watermill stops", func() error {
		running = running[1:]
		return errors.Join(old.stop(), led.more(ctx))
	})
	step("Millrace's own driver takes new orders, from a topic of its own; the queue runs dry", func() error {
		topic := queue + ".v2"
		if err := start("millrace", native, topic); err != nil {
			return err
		}
		load.via(viaMillrace(native, topic))
		return led.handledBy(ctx, "millrace", leastOrders)
	})
	step("the orders end", func() error { return errors.Join(load.end(), led.complete(ctx), stop()) })
	if err != nil {
		return fmt.Errorf("rabbitmq: %w", err)
	}
	text, err := led.report(false) // two consumers of one queue have no order
	fmt.Fprintln(out, "rabbitmq:", text)
	return err
}
