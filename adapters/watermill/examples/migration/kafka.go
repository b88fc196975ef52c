package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/IBM/sarama"
	wmkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
)

// oldKafka is the old service's pub/sub, with the settings that it has always had.
func oldKafka(brokers []string, group string) (message.Publisher, func() (message.Subscriber, error), error) {
	marshaler := wmkafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) {
		return m.Metadata.Get("customer"), nil
	})
	publishing := wmkafka.DefaultSaramaSyncPublisherConfig()
	publishing.Producer.RequiredAcks = sarama.WaitForAll
	pub, err := wmkafka.NewPublisher(wmkafka.PublisherConfig{Brokers: brokers, Marshaler: marshaler, OverwriteSaramaConfig: publishing}, nil)
	return pub, func() (message.Subscriber, error) {
		consuming := wmkafka.DefaultSaramaSubscriberConfig()
		consuming.Consumer.Offsets.Initial = sarama.OffsetOldest // otherwise a partition without a position loses its backlog
		return wmkafka.NewSubscriber(wmkafka.SubscriberConfig{Brokers: brokers, Unmarshaler: marshaler, ConsumerGroup: group, OverwriteSaramaConfig: consuming}, nil)
	}, err
}

// migrateKafka moves the handler from Watermill to Millrace, back, and for good, while orders keep
// coming. Both are the same consumer group, one after the other: each begins where the other has
// stopped.
func migrateKafka(ctx context.Context, rawURL string, out io.Writer) (err error) {
	config, err := kafka.ParseURL(rawURL)
	if err != nil {
		return err
	}
	native, err := kafka.Open(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, native.Close()) }()
	b := bus.New(watermill.Shared(native.Driver())) // publishes what the old services can read
	topic := "migration-" + bus.NewID()
	group := topic + "-billing"
	if err := createTopic(ctx, b, topic); err != nil {
		return err
	}
	pub, subscriber, err := oldKafka(config.Brokers, group)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pub.Close()) }()

	led, shadow := newLedger(), newLedger()
	old := func() (*service, error) {
		sub, err := subscriber()
		if err != nil {
			return nil, err
		}
		return startWatermill(led, "watermill", topic, sub)
	}
	current, err := old()
	if err != nil {
		return err
	}
	load := startLoad(ctx, led, viaWatermill(pub, topic))
	defer func() {
		if current != nil {
			err = errors.Join(err, load.end(), current.stop())
		}
	}()
	step := func(text string, f func() error) {
		if err == nil {
			fmt.Fprintln(out, "kafka:", text)
			err = f()
		}
	}
	// replace stops what runs, then starts the next. Orders wait at the broker meanwhile.
	replace := func(start func() (*service, error)) (err error) {
		if err = current.stop(); err == nil {
			current, err = start()
		}
		return err
	}
	millrace := func() (*service, error) { return startMillrace(ctx, led, "millrace", topic, group, b) }

	step("the Watermill service handles the orders", func() error { return led.more(ctx) })
	step("shadow: a Millrace service handles all of them, too, in a group of its own", func() error {
		s, err := startMillrace(ctx, shadow, "shadow", topic, topic+"-shadow", b)
		if err != nil {
			return err
		}
		led.mu.Lock()
		n := len(led.published)
		led.mu.Unlock()
		return errors.Join(shadow.handledBy(ctx, "shadow", n), s.stop())
	})
	step("switch: Watermill stops, Millrace goes on in its place", func() error { return errors.Join(replace(millrace), led.more(ctx)) })
	step("dual: Millrace publishes, too; Watermill's consumers would read it", func() error {
		load.via(viaMillrace(b, topic))
		return led.more(ctx)
	})
	step("back: Millrace stops, Watermill goes on in its place", func() error { return errors.Join(replace(old), led.more(ctx)) })
	step("for good: Watermill stops, Millrace goes on", func() error { return errors.Join(replace(millrace), led.more(ctx)) })
	step("the orders end", func() error { return errors.Join(load.end(), led.complete(ctx), current.stop()) })
	if err != nil {
		return fmt.Errorf("kafka: %w", err)
	}
	current = nil
	text, err := led.report(true)
	fmt.Fprintln(out, "kafka:", strings.TrimSpace(text))
	return err
}

// createTopic makes the topic by looking at it as a group that stays empty.
func createTopic(ctx context.Context, b *bus.Bus, topic string) error {
	s, err := startMillrace(ctx, newLedger(), "nobody", topic, topic+"-nobody", b)
	if err != nil {
		return err
	}
	return s.stop()
}
