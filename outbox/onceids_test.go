package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/outbox"
)

// remembering are both handlers of an inbox, which note the ids of what they are called for.
func remembering(t *testing.T, s *store, begin outbox.Transactor[*sql.Tx]) (handle func(ids ...string) []error, handled *[]string) {
	t.Helper()
	handled = new([]string)
	b := bustest.New(t)
	single := outbox.Once(s.outbox, begin, func(ctx context.Context, _ *sql.Tx, _ placed) error {
		*handled = append(*handled, bus.DeliveryFrom(ctx).ID)
		return nil
	})
	batch := outbox.OnceBatch(s.outbox, begin, func(_ context.Context, _ *sql.Tx, events []bus.Event[placed]) error {
		for _, e := range events {
			*handled = append(*handled, e.ID)
		}
		return nil
	})
	return func(ids ...string) []error {
		msgs := make([]*bus.Message, len(ids))
		for i, id := range ids {
			msgs[i] = &bus.Message{ID: id, Payload: []byte("{}")}
		}
		d := bus.Delivery{Message: msgs[0], Topic: "t", Group: "g"}
		if len(ids) == 1 {
			return []error{single.Handle(bus.NewHandling(t.Context(), b, d), msgs[0])}
		}
		return bus.Outcomes(batch.HandleBatch(bus.NewBatchHandling(t.Context(), b, d), msgs), len(ids))
	}, handled
}

// TestIDsThatAreRefused: an id that an inbox cannot know again is its message's own trouble, alone and in a batch.
func TestIDsThatAreRefused(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		handle, handled := remembering(t, s, outbox.SQL(s.db, nil))
		bad := []string{"", bus.TransientID("t/1"), "a\xff", "a\x00", strings.Repeat("x", 256)}
		for _, id := range bad {
			if err := handle(id)[0]; !bus.IsPermanent(err) || !errors.Is(err, bus.ErrInvalid) {
				t.Errorf("%q: %v", id, err)
			}
		}
		for i, err := range handle(append(bad, "good", "fine")...) {
			if i < len(bad) != bus.IsPermanent(err) || i >= len(bad) && err != nil {
				t.Errorf("%d in a batch: %v", i, err)
			}
		}
		if slices.Sort(*handled); !slices.Equal(*handled, []string{"fine", "good"}) {
			t.Errorf("handled %q", *handled)
		}
	})
}

// TestIDsAreBytes: ids that differ in anything are different messages, and in nothing the same.
func TestIDsAreBytes(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		handle, handled := remembering(t, s, outbox.SQL(s.db, nil))
		ids := []string{"7", "7 ", " 7", "a", "A", "ä", "a\u0308", "☃", strings.Repeat("é", 127), `"\`}
		for range 2 {
			for _, id := range ids {
				if err := handle(id)[0]; err != nil {
					t.Errorf("%q: %v", id, err)
				}
			}
			for i, err := range handle(ids...) {
				if err != nil {
					t.Errorf("%q in a batch: %v", ids[i], err)
				}
			}
		}
		if !slices.Equal(*handled, ids) {
			t.Errorf("handled %q", *handled)
		}
	})
}

// TestBatchWithoutDatabase: when the connection breaks while a batch is handled, and the database stays away, each of its
// messages does not try for itself.
func TestBatchWithoutDatabase(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	begins := 0
	away := errors.New("connection refused")
	h := outbox.OnceBatch(s.outbox, func(ctx context.Context, f func(*sql.Tx, outbox.Execer) error) error {
		if begins++; begins > 1 {
			return away
		}
		return outbox.SQL(s.db, nil)(ctx, f)
	}, func(context.Context, *sql.Tx, []bus.Event[placed]) error { return errors.New("broken pipe") })
	msgs := make([]*bus.Message, 500)
	for i := range msgs {
		msgs[i] = &bus.Message{ID: fmt.Sprint(i), Payload: []byte("{}")}
	}
	err := h.HandleBatch(bus.NewBatchHandling(t.Context(), bustest.New(t), bus.Delivery{Topic: "t", Group: "g"}), msgs)
	for i, err := range bus.Outcomes(err, len(msgs)) {
		if !errors.Is(err, away) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if begins != 2 {
		t.Errorf("%d transactions were begun", begins)
	}
}

// TestTransactorThatSwallows: what failed in the transaction is not taken for done, whatever the transactor makes of it.
func TestTransactorThatSwallows(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	swallow := func(ctx context.Context, f func(*sql.Tx, outbox.Execer) error) error {
		_ = outbox.SQL(s.db, nil)(ctx, f)
		return nil
	}
	failed := errors.New("no")
	h := outbox.Once(s.outbox, swallow, func(context.Context, *sql.Tx, placed) error { return failed })
	m := &bus.Message{ID: "1", Payload: []byte("{}")}
	if err := h.Handle(bus.NewHandling(t.Context(), bustest.New(t), bus.Delivery{Message: m, Topic: "t", Group: "g"}), m); !errors.Is(err, failed) {
		t.Errorf("once: %v", err)
	}
	if err := outbox.Do(t.Context(), s.outbox, swallow, func(*sql.Tx, bus.Publisher) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("do: %v", err)
	}
}

type tenantKey struct{}

// TestAnnouncing: the transaction that tells relays of a commit has the values of the context, and there is none if nothing
// was published.
func TestAnnouncing(t *testing.T) {
	s := newStore(t, outbox.Postgres)
	tenants := make(chan any, 10)
	begin := func(ctx context.Context, f func(*sql.Tx, outbox.Execer) error) error {
		tenants <- ctx.Value(tenantKey{})
		return outbox.SQL(s.db, nil)(ctx, f)
	}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), tenantKey{}, "acme"))
	if err := outbox.Do(ctx, s.outbox, begin, func(*sql.Tx, bus.Publisher) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := outbox.Do(ctx, s.outbox, begin, func(_ *sql.Tx, p bus.Publisher) error { return p.Publish(ctx, "t", placed{}) }); err != nil {
		t.Fatal(err)
	}
	cancel()
	for range 3 { // the two, and the announcement of the second
		if tenant := <-tenants; tenant != "acme" {
			t.Errorf("a transaction for tenant %v", tenant)
		}
	}
	select {
	case tenant := <-tenants:
		t.Errorf("one more transaction, for tenant %v", tenant)
	default:
	}
}
