package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

// gated is a broker on which calls with a message of one key wait.
type gated struct {
	*faulty
	key  string
	gate chan struct{}
}

// Publish implements driver.Driver.
func (g gated) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	if slices.ContainsFunc(msgs, func(m *bus.Message) bool { return m.Key == g.key }) {
		select {
		case <-g.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return g.faulty.Publish(ctx, topic, msgs)
}

// TestBacklogOfOneKey: a key has more messages than a relay takes in hand, and its calls are slow.
// The messages of others, behind them, do not wait for it, and it comes in order.
func TestBacklogOfOneKey(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		f, _ := newFaulty(t)
		g := gated{f, "slow", make(chan struct{})}
		var others []*bus.Message
		for i := range 1500 {
			others = append(others, &bus.Message{ID: fmt.Sprint(i), Key: fmt.Sprint(i)})
		}
		s.runRelay(t, bus.New(g), outbox.RelayConfig{Poll: 10 * time.Millisecond})
		const few = 20 // claims, after which a relay knows that messages are small, and takes thousands
		for i := range few {
			s.publish(t, "t", others[i])
			f.await(t, i+1)
		}
		s.publishAll(t, "t", append(numbered("slow", 4500), others[few:]...)...)
		f.await(t, len(others))
		close(g.gate)
		if got := f.await(t, len(others)+4500)["slow"]; !slices.Equal(got, ids(numbered("slow", 4500))) {
			t.Error("the key with the backlog came out of order")
		}
	})
}

// TestCrowdIsRefused: the broker refuses all messages of a topic, each of a key of its own. They
// are poisoned at a pace that ends.
func TestCrowdIsRefused(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	f, _ := newFaulty(t)
	f.judge = func(string, *bus.Message) error { return errRefused }
	msgs := make([]*bus.Message, 5500)
	for i := range msgs {
		msgs[i] = &bus.Message{ID: fmt.Sprint(i)}
	}
	s.publishAll(t, "t", msgs...)
	r, _ := s.runRelay(t, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
	counts(t, r, func(s outbox.RelayStats) bool { return s.Blocked >= 5000 })
	before := r.Stats().Poisoned
	counts(t, r, func(s outbox.RelayStats) bool { return s.Poisoned >= before+200 })
}
