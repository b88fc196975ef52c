package mysql_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// counting has a value for each message that was poisoned.
type counting chan struct{}

func (c counting) Poisoned(context.Context, driver.PoisonEntry) { c <- struct{}{} }

// TestLargestMessages: messages that may be published may be parked and poisoned too, several at
// once.
func TestLargestMessages(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b, err := bus.Open(ctx, database(t).URL, bus.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const n = 3
	poisoned := make(counting, n)
	r := router.New(b, "g", router.Hooks(poisoned), router.Policy{Retry: router.Schedule{time.Second}}, router.InFlight(n, 1<<30))
	over := make(chan error, 1)
	r.HandleFunc("t", func(context.Context, *bus.Message) error { return errors.New("no") })
	running, stop := context.WithCancel(ctx)
	go func() { over <- r.Run(running) }()
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte{0, '"', 0xff}, b.Driver().Capabilities().MaxMessage/3-200)
	for range n {
		if err := b.PublishMessages(ctx, "t", &bus.Message{Payload: payload}); err != nil {
			t.Fatal(err)
		}
	}
	q, err := poison.Open(ctx, b, "g")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		select {
		case <-poisoned:
		case <-ctx.Done():
			t.Fatalf("%d of %d are in the poison queue", i, n)
		}
	}
	for e, err := range q.List(ctx, poison.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(e.Message.Payload, payload) || e.Failure.Attempts != 2 {
			t.Errorf("%d bytes after %d tries", len(e.Message.Payload), e.Failure.Attempts)
		}
	}
	stop()
	if err := <-over; err != nil {
		t.Error(err)
	}
}
