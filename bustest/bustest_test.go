package bustest_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

type OrderPlaced struct{ OrderID string }

func (e OrderPlaced) EventKey() string { return e.OrderID }

type PaymentRequested struct{ OrderID string }

// Billing is a service under test; its first calls may fail.
type Billing struct{ fail int }

func (s *Billing) Placed(ctx context.Context, e OrderPlaced) error {
	if e.OrderID == "" {
		return bus.Permanent(errors.New("no order id"))
	}
	if s.fail > 0 {
		s.fail--
		return errors.New("bank away")
	}
	return bus.Emit(ctx, "payments", PaymentRequested(e))
}

func (s *Billing) Register(r *router.Router) { router.On(r, "orders", s.Placed) }

// A handler is a function: call it, and look at the messages it emitted.
func TestHandlerAlone(t *testing.T) {
	rec := bustest.NewRecorder(t)
	ctx := rec.Handling(t.Context(), &bus.Message{ID: "m1"})
	if err := new(Billing).Placed(ctx, OrderPlaced{"o1"}); err != nil {
		t.Fatal(err)
	}
	if got := bustest.Published[PaymentRequested](t, rec, "payments"); !slices.Equal(got, []PaymentRequested{{"o1"}}) {
		t.Errorf("emitted %v", got)
	}
	if err := new(Billing).Placed(ctx, OrderPlaced{}); !bus.IsPermanent(err) {
		t.Errorf("an order without an id: %v, want a permanent error", err)
	}
}

func TestRegistration(t *testing.T) {
	r := router.New(bustest.New(t), "billing")
	new(Billing).Register(r)
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
}

// The whole service over a bus in memory; in virtual time an hour's delay costs nothing.
func TestRetriesThenPays(t *testing.T) {
	testlog.Expect(t, "handler failed")
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		r := router.New(b, "billing", router.Policy{Retry: router.Schedule{time.Hour}})
		(&Billing{fail: 1}).Register(r)
		bustest.Run(t, r)
		if err := b.Publish(t.Context(), "orders", OrderPlaced{"o1"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := len(bustest.Published[PaymentRequested](t, b, "payments")); n != 0 {
			t.Fatalf("%d payments before the retry", n)
		}
		time.Sleep(2 * time.Hour) // the delay, and its jitter
		synctest.Wait()
		if n := len(bustest.Published[PaymentRequested](t, b, "payments")); n != 1 {
			t.Fatalf("%d payments, want 1", n)
		}
	})
}
