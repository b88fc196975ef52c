package all_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/router"
)

// TestCorrelationOverDrivers follows a message over every driver: each service publishes, on the
// next bus, because of the message it was given.
func TestCorrelationOverDrivers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tag := bus.NewID()
	topic, group := "hop-"+tag, "g-"+tag
	hops := []struct {
		url  string
		drop func(t testing.TB, b *bus.Bus, topic, group string)
	}{
		{brokertest.URL(t, "kafka"), dropKafka},
		{brokertest.URL(t, "rabbitmq"), dropRabbitMQ},
		{brokertest.Postgres(t), nil},
		{brokertest.MySQL(t), nil},
		{"sqlite:" + filepath.Join(t.TempDir(), "bus.db"), nil},
		{"memory:" + tag, nil},
	}
	buses := make([]*bus.Bus, len(hops))
	for i, hop := range hops {
		b, err := bus.Open(ctx, hop.url)
		if err != nil {
			t.Fatal(err)
		}
		buses[i] = b
		t.Cleanup(func() {
			if hop.drop != nil {
				hop.drop(t, b, topic, group)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	last := make(chan bus.Headers, 1)
	running, stop := context.WithCancel(ctx)
	over := make(chan error, len(hops))
	for i, b := range buses {
		r := router.New(b, group, router.Use(middleware.Correlation()))
		r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
			if i == len(buses)-1 {
				last <- m.Headers
				return nil
			}
			return buses[i+1].Publish(ctx, topic, bus.Message{ID: m.ID + "+"})
		})
		go func() { over <- r.Run(running) }()
		if err := r.Ready(ctx); err != nil {
			t.Error(err)
		}
	}
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	first := &bus.Message{ID: "first", Headers: bus.Headers{{Name: "traceparent", Value: trace}, {Name: "tracestate", Value: "a=1,b=2"}}}
	if err := buses[0].PublishMessages(ctx, topic, first); err != nil {
		t.Error(err)
	}
	select {
	case h := <-last:
		for name, want := range map[string]string{
			bus.HeaderCorrelationID: "first", bus.HeaderCausationID: "first++++", "traceparent": trace, "tracestate": "a=1,b=2",
		} {
			if got := h.Values(name); len(got) != 1 || got[0] != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	case <-ctx.Done():
		t.Error("it did not arrive")
	}
	stop()
	for range hops {
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
}
