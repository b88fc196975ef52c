package watermill_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	_ "github.com/millrace-go/millrace/adapters/all"
	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
)

// native are Millrace's own drivers.
var native = []struct {
	name     string
	url      func(t *testing.T) string
	features tests.Features
}{
	{"memory", func(t *testing.T) string { return "memory:" + t.Name() }, tests.Features{RequireSingleInstance: false}},
	{"sqlite", func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "bus.db") }, tests.Features{}},
	{"kafka", server("MILLRACE_KAFKA_URL"), tests.Features{}},
	{"rabbitmq", server("MILLRACE_RABBITMQ_URL"), tests.Features{}},
	{"postgres", server("MILLRACE_POSTGRES_URL"), tests.Features{}},
	{"mysql", server("MILLRACE_MYSQL_URL"), tests.Features{}},
}

// server is a broker's URL from the environment.
func server(variable string) func(t *testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
		url := os.Getenv(variable)
		switch {
		case url == "" && os.Getenv("MILLRACE_REQUIRE_BROKERS") == "1":
			t.Fatalf("%s is not set", variable)
		case url == "":
			t.Skipf("%s is not set: run make brokers and . .brokers/env", variable)
		case testing.Short():
			t.Skip("short")
		}
		return url
	}
}

// TestWatermillSuite is Watermill's own suite for pub/subs, over a bus.
func TestWatermillSuite(t *testing.T) {
	for _, n := range native {
		t.Run(n.name, func(t *testing.T) {
			url := n.url(t)
			run := "wm-" + bus.NewID()
			b, err := bus.Open(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
			group := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
				t.Helper()
				sub, err := watermill.Subscriber(b, group, watermill.SubscriberConfig{NackDelay: time.Millisecond, CloseTimeout: time.Second})
				if err != nil {
					t.Fatal(err)
				}
				// One key for each payload: the suite demands order among messages of equal payload.
				return watermill.Publisher(b, watermill.PublisherConfig{Key: func(_ string, m *message.Message) (string, error) {
					return string(m.Payload), nil
				}}), sub
			}
			f := n.features
			f.ConsumerGroups, f.GuaranteedOrder, f.Persistent = true, true, true
			tests.TestPubSub(t, f, func(t *testing.T) (message.Publisher, message.Subscriber) { return group(t, run) }, group)
		})
	}
}
