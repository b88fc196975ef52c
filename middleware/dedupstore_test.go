package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/router"
)

// Two topics of a group have ids of their own.
func TestDeduplicateByTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		r := router.New(b, "g", router.Use(middleware.Deduplicate(&middleware.DedupMemory{}, func(m *bus.Message) string { return m.Subject })))
		var mu sync.Mutex
		var got []string
		h := func(ctx context.Context, m *bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, bus.DeliveryFrom(ctx).Topic)
			return nil
		}
		r.HandleFunc("orders", h)
		r.HandleFunc("payments", h)
		r.Handle("refunds", batchFunc(func(ctx context.Context, ms []*bus.Message) error { return h(ctx, ms[0]) }))
		bustest.Run(t, r)
		for _, topic := range []string{"orders", "payments", "refunds", "orders", "payments", "refunds"} {
			if err := b.PublishMessages(t.Context(), topic, &bus.Message{Subject: "order 1"}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if want := []string{"orders", "payments", "refunds"}; !slices.Equal(got, want) {
			t.Errorf("handled %v, want %v", got, want)
		}
	})
}

// An id that names a delivery says nothing about the message: it is handled, and takes no room in
// the store.
func TestDeduplicateTransientIDs(t *testing.T) {
	b := bustest.New(t)
	store := &failingStore{seen: errBoom, remember: errBoom}
	mw := middleware.Deduplicate(store, nil)
	id := driver.TransientID("t", bus.Token{Position: 1})
	calls := 0
	for range 2 {
		if err := ended(t.Context(), b, mw, &bus.Message{ID: id}, func(context.Context, *bus.Message) error { calls++; return nil }); err != nil {
			t.Errorf("the store was asked: %v", err)
		}
	}
	h := &batch{}
	if err := bus.PerMessage(endedBatch(t.Context(), b, mw, h, &bus.Message{ID: id}, &bus.Message{ID: id})); err != nil || calls != 2 || len(h.got) != 2 {
		t.Errorf("%v; %d calls, a batch of %d: want 2 and 2", err, calls, len(h.got))
	}
}

// awayStore fails to answer or to remember while the test says so; by an error or a panic.
type awayStore struct {
	middleware.DedupMemory
	mu             sync.Mutex
	seen, remember func() error
}

func (s *awayStore) set(seen, remember func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen, s.remember = seen, remember
}

func (s *awayStore) Seen(ctx context.Context, scope string, ids []string) ([]bool, error) {
	s.mu.Lock()
	fail := s.seen
	s.mu.Unlock()
	if fail != nil {
		return nil, fail()
	}
	return s.DedupMemory.Seen(ctx, scope, ids)
}

func (s *awayStore) Remember(ctx context.Context, scope string, ids []string) error {
	s.mu.Lock()
	fail := s.remember
	s.mu.Unlock()
	if fail != nil {
		return fail()
	}
	return s.DedupMemory.Remember(ctx, scope, ids)
}

// While the store is away, consuming pauses, and no message is poisoned. What was handled as it
// went is not handled again.
func TestDeduplicateWhileTheStoreIsAway(t *testing.T) {
	testlog.Expect(t, "not available; consuming pauses")
	for how, fail := range map[string]func() error{
		"error": func() error { return errBoom },
		"panic": func() error { panic("in the store") },
	} {
		for _, batches := range []bool{false, true} {
			t.Run(fmt.Sprint(how, " batches=", batches), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := bustest.New(t)
					store := &awayStore{}
					store.set(nil, fail)
					r := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Second}}, router.Use(middleware.Deduplicate(store, nil)))
					var mu sync.Mutex
					handled := map[string]int{}
					h := batchFunc(func(ctx context.Context, ms []*bus.Message) error {
						mu.Lock()
						defer mu.Unlock()
						for _, m := range ms {
							handled[m.ID]++
							if err := bus.Emit(ctx, "out", m.ID, bus.WithCause(m)); err != nil {
								return err
							}
						}
						return nil
					})
					if batches {
						r.Handle("in", h)
					} else {
						r.HandleFunc("in", h.Handle)
					}
					bustest.Run(t, r)
					send := func(id string) {
						t.Helper()
						if err := b.PublishMessages(t.Context(), "in", &bus.Message{ID: id, Key: id}); err != nil {
							t.Fatal(err)
						}
					}
					send("not remembered")
					time.Sleep(time.Hour)
					store.set(fail, fail)
					for i := range 20 {
						send(fmt.Sprint(i))
					}
					time.Sleep(2 * time.Minute)
					synctest.Wait()
					if len(handled) != 1 {
						t.Errorf("handled without having asked: %v", handled)
					}
					store.set(nil, nil)
					time.Sleep(time.Minute)
					synctest.Wait()
					for id, n := range handled {
						if n != 1 {
							t.Errorf("%s was handled %d times", id, n)
						}
					}
					if out := bustest.Published[string](t, b, "out"); len(handled) != 21 || len(out) != 21 {
						t.Errorf("%d handled, %d outputs, want 21", len(handled), len(out))
					}
					if es := poisonedIn(t, b, "g"); len(es) > 0 {
						t.Errorf("%d poisoned: %s", len(es), es[0].Failure.Text)
					}
				})
			})
		}
	}
}

// The failures of a batch stay failures if the store cannot remember the rest.
func TestDeduplicateRemembersNothingOfABatch(t *testing.T) {
	b := bustest.New(t)
	store := &failingStore{remember: errors.New("disk full")}
	ctx := engine.NewDirect(t.Context(), b, bus.Delivery{Message: &bus.Message{}, Topic: "t", Group: "g"})
	h := middleware.Deduplicate(store, nil)(&batch{err: bus.PerMessage([]error{errBoom, nil})}).(bus.BatchHandler)
	errs := bus.Outcomes(h.HandleBatch(ctx, []*bus.Message{{ID: "1"}, {ID: "2"}}), 2)
	if !errors.Is(errs[0], errBoom) || bus.IsIgnored(errs[0]) || !bus.IsIgnored(errs[1]) || !errors.Is(errs[1], store.remember) {
		t.Errorf("%v", errs)
	}
}
