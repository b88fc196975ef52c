package poison_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// filled is a queue with entries of two topics, handlers and classes; the ids are "0" to "9".
func filled(t *testing.T) (*bus.Bus, *poison.Queue) {
	t.Helper()
	b, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	q, err := poison.Open(t.Context(), b, "g")
	if err != nil {
		t.Fatal(err)
	}
	store, err := driver.Of(b).Poison(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		e := driver.PoisonEntry{
			ID: fmt.Sprint(i), Topic: []string{"orders", "payments"}[i%2], Group: "g", Handler: []string{"a", "b"}[i%2],
			Message: &bus.Message{ID: fmt.Sprint("m", i), Key: fmt.Sprint("k", i%5)}, Time: time.Unix(int64(i), 0),
			Failure: bus.Failure{Class: []string{"permanent", "panic"}[i/5], Text: fmt.Sprint("Error ", i)},
		}
		if err := store.Put(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	return b, q
}

func ids(t *testing.T, q *poison.Queue, f poison.Filter) []string {
	t.Helper()
	ids := []string{}
	for e, err := range q.List(t.Context(), f) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

func TestFilter(t *testing.T) {
	_, q := filled(t)
	for _, tc := range []struct {
		f    poison.Filter
		want []string
	}{
		{poison.Filter{IDs: []string{"3", "m7"}}, []string{"3", "7"}},
		{poison.Filter{Topic: "orders", Class: "panic"}, []string{"6", "8"}},
		{poison.Filter{Handler: "b", Key: "k1"}, []string{"1"}},
		{poison.Filter{Text: "error 4"}, []string{"4"}},
		{poison.Filter{Since: time.Unix(2, 0), Until: time.Unix(4, 0)}, []string{"2", "3"}},
		{poison.Filter{After: "6", Limit: 2}, []string{"7", "8"}},
		{poison.Filter{After: "gone"}, []string{}},
	} {
		if got := ids(t, q, tc.f); !slices.Equal(got, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.f, got, tc.want)
		}
		if n, err := q.Count(t.Context(), tc.f); n != len(tc.want) || err != nil {
			t.Errorf("%+v: %d, %v", tc.f, n, err)
		}
	}
	groups, err := q.Summaries(t.Context(), poison.Filter{})
	if err != nil || len(groups) != 4 || groups[0] != (poison.Summary{Handler: "a", Class: "permanent", Count: 3, First: time.Unix(0, 0), Last: time.Unix(4, 0), Text: "Error 4"}) {
		t.Errorf("%+v, %v", groups, err)
	}
	if _, err := q.Get(t.Context(), "none"); !errors.Is(err, bus.ErrNotFound) {
		t.Error(err)
	}
}

// flaky is a driver with an injector that fails after some calls.
type flaky struct {
	driver.Driver
	left int
}

var errNo = errors.New("no")

func (f *flaky) Inject(ctx context.Context, topic, group string, ps []driver.Parking) error {
	if f.left--; f.left < 0 {
		return errNo
	}
	return f.Driver.(driver.Injector).Inject(ctx, topic, group, ps)
}

// TestReplayInterrupted: the entries not replayed are still there, and a second run does the rest.
func TestReplayInterrupted(t *testing.T) {
	b, _ := filled(t)
	d := &flaky{Driver: driver.Of(b), left: 1}
	q, err := poison.Open(t.Context(), bus.New(d), "g")
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan string, 20)
	r := router.New(b, "g", router.Workers(1))
	for i, topic := range []string{"orders", "payments"} {
		r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error { came <- m.ID; return nil }, router.Name([]string{"a", "b"}[i]))
	}
	over := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { over <- r.Run(ctx) }()
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	result, err := q.Replay(t.Context(), poison.Filter{}, poison.Options{})
	if !errors.Is(err, errNo) || result != (poison.Result{Matched: 10, Done: 5}) {
		t.Errorf("%+v, %v", result, err)
	}
	if got := ids(t, q, poison.Filter{}); !slices.Equal(got, []string{"1", "3", "5", "7", "9"}) {
		t.Errorf("left are %v", got)
	}
	d.left = 1
	var progress []int
	result, err = q.Replay(t.Context(), poison.Filter{}, poison.Options{Progress: func(done, total int) { progress = append(progress, done, total) }})
	if err != nil || result != (poison.Result{Matched: 5, Done: 5}) || !slices.Equal(progress, []int{5, 5}) {
		t.Errorf("%+v, %v, %v", result, err, progress)
	}
	seen := map[string]int{}
	for range 10 {
		seen[<-came]++
	}
	if len(seen) != 10 {
		t.Errorf("came %v", seen)
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
}

func TestEdit(t *testing.T) {
	_, q := filled(t)
	if err := q.Edit(t.Context(), "3", func(m *bus.Message) { m.Payload = []byte("new") }); err != nil {
		t.Fatal(err)
	}
	if e, err := q.Get(t.Context(), "3"); err != nil || string(e.Message.Payload) != "new" || e.Message.ID != "m3" {
		t.Errorf("%+v, %v", e, err)
	}
	for _, change := range []func(*bus.Message){func(m *bus.Message) { m.ID = "other" }, func(m *bus.Message) { m.Key = "other" }} {
		if err := q.Edit(t.Context(), "3", change); !errors.Is(err, bus.ErrInvalid) {
			t.Error(err)
		}
	}
}

// TestBlockedKey: a replay or drop of the message that a key waits for lets the key's later
// messages go on, in order.
func TestBlockedKey(t *testing.T) {
	testlog.Expect(t, "message poisoned")
	for _, drop := range []bool{false, true} {
		t.Run(fmt.Sprint("drop=", drop), func(t *testing.T) {
			b, err := memory.Open(memory.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			came := make(chan string, 10)
			poisoned := make(chan struct{}, 1)
			r := router.New(b, "g", router.Policy{KeyWaits: true}, router.Hooks(hook(poisoned)))
			r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
				if d := bus.DeliveryFrom(ctx); m.ID == "0" && (d.Failure == nil || d.Failure.Replays == 0) {
					return bus.Permanent(errNo)
				}
				came <- m.ID
				return nil
			})
			ctx, cancel := context.WithCancel(t.Context())
			over := make(chan error)
			go func() { over <- r.Run(ctx) }()
			for i := range 4 {
				if err := b.PublishMessages(ctx, "t", &bus.Message{ID: fmt.Sprint(i), Key: "k"}); err != nil {
					t.Fatal(err)
				}
			}
			<-poisoned
			q, err := poison.Open(ctx, b, "g")
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"0", "1", "2", "3"}
			act := q.Replay
			if drop {
				act, want = q.Drop, want[1:]
			}
			if result, err := act(ctx, poison.Filter{Key: "k"}, poison.Options{}); err != nil || result.Done != 1 {
				t.Fatalf("%+v, %v", result, err)
			}
			for _, id := range want {
				if got := <-came; got != id {
					t.Errorf("%s came, want %s", got, id)
				}
			}
			cancel()
			if err := <-over; err != nil {
				t.Error(err)
			}
		})
	}
}

type hook chan<- struct{}

func (h hook) Poisoned(context.Context, driver.PoisonEntry) { h <- struct{}{} }

// A replayed message has the key that it had, and so its place in the order.
func TestReplayKeepsTheKey(t *testing.T) {
	testlog.Expect(t, "message poisoned")
	b, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const key = "k\xff\x00"
	keys := make(chan string, 1)
	poisoned := make(chan struct{}, 1)
	r := router.New(b, "g", router.Hooks(hook(poisoned)))
	r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
		if bus.DeliveryFrom(ctx).Failure == nil {
			return bus.Permanent(errNo)
		}
		keys <- m.Key
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- r.Run(ctx) }()
	if err := b.PublishMessages(ctx, "t", &bus.Message{ID: "0", Key: key}); err != nil {
		t.Fatal(err)
	}
	const patience = 20 * time.Second
	select {
	case <-poisoned:
	case <-time.After(patience):
		t.Fatal("the message was not poisoned")
	}
	q, err := poison.Open(ctx, b, "g")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Replay(ctx, poison.Filter{Key: key}, poison.Options{}); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-keys:
		if got != key {
			t.Errorf("the key is %q", got)
		}
	case <-time.After(patience):
		t.Error("what was replayed did not come")
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
}

// missing is a broker on which one topic is not there any more.
type missing struct {
	driver.Driver
	topic string
}

func (d *missing) As(target any) bool {
	i, ok := target.(*driver.Injector)
	if ok {
		*i = d
	}
	return ok
}

func (d *missing) Inject(_ context.Context, topic, _ string, _ []driver.Parking) error {
	if topic == d.topic {
		return fmt.Errorf("inject: %w", bus.ErrNotFound)
	}
	return nil
}

// TestReplayWithoutATopic: entries of a topic that is gone do not keep the others.
func TestReplayWithoutATopic(t *testing.T) {
	m, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	d := driver.Of(m)
	b := bus.New(&missing{d, "gone"})
	store, err := d.Poison(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 250 {
		topic := "here"
		if i%2 == 0 {
			topic = "gone"
		}
		e := driver.PoisonEntry{ID: fmt.Sprint(i), Topic: topic, Group: "g", Message: &bus.Message{ID: fmt.Sprint(i)}, Time: time.Now()}
		if err := store.Put(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	q, err := poison.Open(t.Context(), b, "g")
	if err != nil {
		t.Fatal(err)
	}
	r, err := q.Replay(t.Context(), poison.Filter{}, poison.Options{})
	if !errors.Is(err, bus.ErrNotFound) || !strings.Contains(err.Error(), `topic "gone" does not exist`) || r.Matched != 250 || r.Done != 125 {
		t.Errorf("%+v %v", r, err)
	}
	if n, err := q.Count(t.Context(), poison.Filter{Topic: "here"}); n != 0 || err != nil {
		t.Errorf("%d left: %v", n, err)
	}
}
