package amqplink

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/internal/brokertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dialBroker makes a connection to the real broker.
func dialBroker(t *testing.T) *Session {
	t.Helper()
	u, err := url.Parse(brokertest.URL(t, "rabbitmq"))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	s, err := Dial(t.Context(), Config{
		Credentials: func() (string, string, error) { return u.User.Username(), password, nil },
		Hosts:       []string{u.Host}, VHost: "/", Name: "test", Heartbeat: 10 * time.Second,
	}, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Conn.CloseDeadline(time.Now().Add(5 * time.Second))
		<-s.Done
	})
	return s
}

// Pipelines with names that nobody uses any more are closed.
func TestManyNames(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	q := NewPipelines(dialBroker(t))
	for i := range MaxPipelines + 20 {
		p, done, err := q.Get(ctx, fmt.Sprint(i%(MaxPipelines+10)))
		if err != nil || p.Closed() {
			t.Fatal(i, err)
		}
		if i > 0 { // the first is in use
			done()
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.open); n != MaxPipelines || q.open["0"].users == 0 {
		t.Errorf("%d pipelines", n)
	}
}
