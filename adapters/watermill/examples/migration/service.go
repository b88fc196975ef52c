package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	wm "github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// service is a running consumer.
type service struct{ stop func() error }

// startWatermill runs the old service: a Watermill router with one handler.
func startWatermill(led *ledger, who, topic string, sub message.Subscriber) (*service, error) {
	r, err := message.NewRouter(message.RouterConfig{}, wm.NopLogger{})
	if err != nil {
		return nil, err
	}
	r.AddConsumerHandler("charge", topic, sub, func(msg *message.Message) error {
		var o Order
		if err := json.Unmarshal(msg.Payload, &o); err != nil {
			return err
		}
		led.handle(who, o)
		return nil
	})
	over := make(chan error, 1)
	go func() { over <- r.Run(context.Background()) }()
	select {
	case <-r.Running():
	case err := <-over:
		return nil, fmt.Errorf("%s: %w", who, err)
	}
	return &service{func() error { return errors.Join(r.Close(), <-over, sub.Close()) }}, nil
}

// startMillrace runs the new service: a Millrace router with one handler.
func startMillrace(ctx context.Context, led *ledger, who, topic, group string, b *bus.Bus) (*service, error) {
	r := router.New(b, group)
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		var o Order
		if err := b.Decode(m, &o); err != nil {
			return err
		}
		led.handle(who, o)
		return nil
	})
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	over := make(chan error, 1)
	go func() { over <- r.Run(running) }()
	stop := func() error {
		cancel()
		return <-over
	}
	if err := r.Ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", who, err), stop())
	}
	return &service{stop}, nil
}
