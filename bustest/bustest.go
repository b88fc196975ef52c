// Package bustest helps to test services on Millrace. It has
//
//   - a bus in memory that remembers published messages,
//   - a router that runs during a test,
//   - a recorder for handlers that are called directly.
//
// Inside of testing/synctest, delays of retries cost no time, and synctest.Wait returns when every
// handler is done.
package bustest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// New returns a bus in memory of its own. The end of the test closes it.
func New(t testing.TB, opts ...bus.Option) *bus.Bus {
	t.Helper()
	m, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatalf("bustest: %v", err)
	}
	b := bus.New(&remembering{Driver: driver.Of(m)}, opts...)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("bustest: close: %v", err)
		}
	})
	return b
}

// Run starts r and waits until it is ready. At the end of the test it drains r, and fails t if Run
// failed.
func Run(t testing.TB, r *router.Router) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Errorf("bustest: run: %v", err)
		}
	})
	if err := r.Ready(ctx); err != nil {
		t.Fatalf("bustest: %v", err)
	}
}

// Recorder is a Publisher that keeps published messages. It is safe for concurrent use.
type Recorder struct {
	*bus.Bus
}

// NewRecorder makes a recorder on a bus made by [New]. It is closed at the end of the test.
func NewRecorder(t testing.TB, opts ...bus.Option) *Recorder {
	t.Helper()
	return &Recorder{New(t, opts...)}
}

// Handling returns a context like that of a handler of m. Messages emitted under it go to the
// recorder at once.
func (r *Recorder) Handling(ctx context.Context, m *bus.Message) context.Context {
	return engine.NewDirect(ctx, r.Bus, bus.Delivery{Message: m, Topic: "test", Group: "test", Handler: "test", Attempt: 1})
}

// Published returns the events of type T on topic so far, decoded, in order. It leaves out messages
// of other types. p must come from New or NewRecorder.
func Published[T any](t testing.TB, p bus.Publisher, topic string) []T {
	t.Helper()
	var b *bus.Bus
	switch p := p.(type) {
	case *bus.Bus:
		b = p
	case *Recorder:
		b = p.Bus
	}
	if b == nil {
		t.Fatalf("bustest: Published wants a publisher of New or NewRecorder, not a %T", p)
	}
	d, ok := b.Driver().(*remembering)
	if !ok {
		t.Fatal("bustest: Published wants a bus that New made")
	}
	var events []T
	for _, m := range d.published(topic) {
		if name := bus.TypeName[T](); name != "" && m.Type != "" && m.Type != name {
			continue
		}
		var v T
		if err := b.Decode(m, &v); err != nil {
			t.Fatalf("bustest: %v", err)
		}
		events = append(events, v)
	}
	return events
}

// remembering is the memory driver; it also keeps published messages.
type remembering struct {
	driver.Driver

	mu   sync.Mutex
	msgs map[string][]*bus.Message
}

// Publish implements driver.Driver.
func (d *remembering) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	copies := make([]*bus.Message, len(msgs))
	for i, m := range msgs {
		copies[i] = m.Clone()
	}
	d.mu.Lock()
	if d.msgs == nil {
		d.msgs = map[string][]*bus.Message{}
	}
	d.msgs[topic] = append(d.msgs[topic], copies...) // before a handler can know of it
	d.mu.Unlock()
	err := d.Driver.Publish(ctx, topic, msgs)
	if err == nil {
		return nil
	}
	each, ok := errors.AsType[*bus.PublishError](err)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.msgs[topic] = slices.DeleteFunc(d.msgs[topic], func(m *bus.Message) bool {
		i := slices.Index(copies, m)
		return i >= 0 && (!ok || each.Errs[i] != nil)
	})
	return err
}

// As finds the abilities of the memory driver for [bus.As].
func (d *remembering) As(target any) bool {
	ok := false
	switch target := target.(type) {
	case *driver.Injector:
		*target, ok = d.Driver.(driver.Injector)
	case *driver.Lagger:
		*target, ok = d.Driver.(driver.Lagger)
	}
	return ok
}

func (d *remembering) published(topic string) []*bus.Message {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.msgs[topic])
}
