package all_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/router"
)

// BenchmarkLag asks for the lag of a group that is a million messages behind.
func BenchmarkLag(b *testing.B) {
	for name, url := range map[string]func(*testing.B) string{
		"sqlite":   func(b *testing.B) string { return "sqlite:" + filepath.Join(b.TempDir(), "bus.db") },
		"postgres": func(b *testing.B) string { return brokertest.Postgres(b) },
		"mysql":    func(b *testing.B) string { return brokertest.MySQL(b) },
		"kafka":    func(b *testing.B) string { return brokertest.URL(b, "kafka") },
		"rabbitmq": func(b *testing.B) string { return brokertest.URL(b, "rabbitmq") },
	} {
		b.Run(name, func(b *testing.B) { benchmarkLag(b, url(b)) })
	}
}

func benchmarkLag(b *testing.B, url string) {
	const behind, batch = 1_000_000, 5000
	ctx := b.Context()
	opened, err := bus.Open(ctx, url)
	if err != nil {
		b.Fatal(err)
	}
	defer opened.Close()
	topic := "lag-" + bus.NewID()
	switch opened.Driver().Capabilities().Broker {
	case "kafka":
		defer dropKafka(b, opened, topic, "g")
	case "rabbitmq":
		defer dropRabbitMQ(b, opened, topic, "g")
	}
	subscribed, cancel := context.WithCancel(ctx)
	r := router.New(opened, "g")
	r.HandleFunc(topic, func(context.Context, *bus.Message) error { return nil })
	over := make(chan error, 1)
	go func() { over <- r.Run(subscribed) }()
	if err := r.Ready(ctx); err != nil {
		b.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // Kafka commits the first positions of the lanes
	cancel()
	if err := <-over; err != nil {
		b.Fatal(err)
	}
	msgs := make([]*bus.Message, batch)
	for n := 0; n < behind; n += batch {
		for i := range msgs {
			msgs[i] = &bus.Message{Key: fmt.Sprint("k", (n+i)%9973), Payload: []byte("0123456789")}
		}
		if err := opened.PublishMessages(ctx, topic, msgs...); err != nil {
			b.Fatal(err)
		}
	}
	lagger, _ := bus.As[driver.Lagger](opened)
	var lag bus.Lag
	for b.Loop() {
		if lag, err = lagger.Lag(ctx, topic, "g"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(lag.Messages), "behind")
	b.ReportMetric(time.Since(lag.Oldest).Seconds(), "s-oldest")
}
