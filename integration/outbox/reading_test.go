package outbox_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// reading holds one group's messages. The messages of a key are numbered 1, 2, 3 and so on.
type reading struct {
	mu       sync.Mutex
	seen     map[string]int // how often an id came
	last     map[string]int // the newest number of each key
	wrong    []string
	want     int // messages in all; 0 until it is known
	complete chan struct{}
}

func newReading() *reading {
	return &reading{seen: map[string]int{}, last: map[string]int{}, complete: make(chan struct{})}
}

// run reads a topic with a router until stop is called.
func (r *reading) run(t *testing.T, b *bus.Bus, topic, group string) (stop func()) {
	t.Helper()
	h := router.New(b, group, router.Workers(16))
	h.HandleFunc(topic, func(_ context.Context, m *bus.Message) error { r.came(m); return nil })
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- h.Run(ctx) }()
	if err := h.Ready(ctx); err != nil {
		t.Error(err)
	}
	return func() {
		cancel()
		if err := <-over; err != nil {
			t.Errorf("router: %v", err)
		}
	}
}

func (r *reading) came(m *bus.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[m.ID]++; r.seen[m.ID] == 1 {
		n, err := strconv.Atoi(string(m.Payload))
		if r.last[m.Key]++; err != nil || n != r.last[m.Key] {
			r.wrong = append(r.wrong, fmt.Sprintf("key %s: %.20q came where %d was to come", m.Key, m.Payload, r.last[m.Key]))
			r.last[m.Key] = n
		}
		if len(r.seen) == r.want {
			close(r.complete)
		}
	}
}

// all says how many messages there are, and returns a channel that is closed when they have come.
func (r *reading) all(want int) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.want = want; len(r.seen) >= want {
		close(r.complete)
	}
	return r.complete
}

// judge compares with the last numbers of keys and the ids that must not come, and returns the
// number of repeats.
func (r *reading) judge(t *testing.T, name string, last map[string]int, never map[string]bool) (repeats int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, n := range last {
		if r.last[k] != n {
			r.wrong = append(r.wrong, fmt.Sprintf("key %s: %d came last, want %d", k, r.last[k], n))
		}
	}
	for id, n := range r.seen {
		repeats += n - 1
		if never[id] {
			r.wrong = append(r.wrong, "rolled back, and came: "+id)
		}
	}
	for i, w := range r.wrong {
		if t.Errorf("%s: %s", name, w); i > 20 {
			t.Errorf("and %d more", len(r.wrong)-i)
			break
		}
	}
	return repeats
}
