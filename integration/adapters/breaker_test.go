package all_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/middleware/breaker"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// TestBreaker: on every driver, a breaker that is open for 5 s has the router consume nothing, and lose nothing: one call finds out, and
// the rest follow, in order.
func TestBreaker(t *testing.T) {
	testlog.Expect(t, "handler failed", "circuit breaker", "not available; consuming pauses")
	for _, broker := range []struct {
		name string
		url  func(t testing.TB) string
		drop func(t testing.TB, b *bus.Bus, topic, group string)
	}{
		{"memory", func(testing.TB) string { return "memory:" + bus.NewID() }, nil},
		{"sqlite", func(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "bus.db") }, nil},
		{"kafka", func(t testing.TB) string { return brokertest.URL(t, "kafka") }, dropKafka},
		{"rabbitmq", func(t testing.TB) string { return brokertest.URL(t, "rabbitmq") }, dropRabbitMQ},
		{"postgres", brokertest.Postgres, nil},
		{"mysql", brokertest.MySQL, nil},
	} {
		t.Run(broker.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			t.Cleanup(cancel)
			b, err := bus.Open(ctx, broker.url(t))
			if err != nil {
				t.Fatal(err)
			}
			tag := bus.NewID()
			topic, group := "breaker-"+tag, "g-"+tag
			t.Cleanup(func() {
				if broker.drop != nil {
					broker.drop(t, b, topic, group)
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
			breaks(ctx, t, b, topic, group)
		})
	}
}

func breaks(ctx context.Context, t *testing.T, b *bus.Bus, topic, group string) {
	const (
		total, keys, failures = 300, 10, 3
		open                  = 5 * time.Second
	)
	var mu sync.Mutex
	var opened, first time.Time
	failed := 0
	handled := map[string]int{}
	next := map[string]int{}
	all := make(chan struct{})
	r := router.New(b, group, router.Workers(1), router.Policy{Retry: make(router.Schedule, failures)})
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if failed++; failed <= failures { // these open it
			opened = time.Now()
			return errors.New("the database is away")
		}
		if first.IsZero() {
			first = time.Now()
		}
		if want := fmt.Sprintf("%s/%d", m.Key, next[m.Key]); m.ID != want {
			t.Errorf("%s came, want %s", m.ID, want)
		}
		next[m.Key]++
		if handled[m.ID]++; len(handled) == total && handled[m.ID] == 1 {
			close(all)
		}
		return nil
	}, router.Use(breaker.New(breaker.Config{Failures: failures, Open: open})))
	running, stop := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() { over <- r.Run(running) }()
	var msgs []*bus.Message
	for i := range total {
		msgs = append(msgs, &bus.Message{ID: fmt.Sprintf("%d/%d", i%keys, i/keys), Key: fmt.Sprint(i % keys)})
	}
	if err := b.PublishMessages(ctx, topic, msgs...); err != nil {
		t.Fatal(err)
	}
	select {
	case <-all:
	case <-ctx.Done():
		t.Errorf("%d of %d were handled", len(handled), total)
	}
	stop()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if pause := first.Sub(opened); pause < open {
		t.Errorf("the first call came %v after the breaker had opened for %v", pause, open)
	}
	for id, n := range handled {
		if n != 1 {
			t.Errorf("%s was handled %d times", id, n)
		}
	}
	q, err := poison.Open(ctx, b, group)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := q.Count(ctx, poison.Filter{}); n != 0 || err != nil {
		t.Errorf("%d were poisoned, %v", n, err)
	}
}
