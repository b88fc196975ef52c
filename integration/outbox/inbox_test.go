package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

type sqlTx = sql.Tx

// paid is a handler's emitted event.
type paid struct{ Cents int64 }

// TestOnce: each message is delivered three times, single or in batches, to two members of the
// group, and handlers fail at random; the sum in the table is exact to the cent, and there are as
// many outputs as effects.
func TestOnce(t *testing.T) {
	testlog.Expect(t, "handler failed")
	databases(t, func(t *testing.T, s *store) {
		for _, batch := range []bool{false, true} {
			t.Run(fmt.Sprintf("batch=%v", batch), func(t *testing.T) { onceOnly(t, s, batch) })
		}
	})
}

func onceOnly(t *testing.T, s *store, batch bool) {
	const n = 300
	b := openBus(t, "memory:"+unique("once"))
	topic, outputs := unique("orders"), unique("payments")
	account := s.own(t, fmt.Sprintf("account_%v", batch), "(id INT NOT NULL PRIMARY KEY, cents BIGINT NOT NULL)")
	s.exec(t, "INSERT INTO "+account+" VALUES (1, 0)")
	var handled atomic.Int64
	all := make(chan struct{})
	apply := func(ctx context.Context, tx *sql.Tx, e placed) error {
		if _, err := tx.ExecContext(ctx, s.args("UPDATE "+account+" SET cents = cents + ? WHERE id = 1"), e.Cents); err != nil {
			return err
		}
		if err := bus.Emit(ctx, outputs, paid{e.Cents}); err != nil {
			return err
		}
		if rand.N(4) == 0 {
			return errors.New("failed on purpose")
		}
		return nil
	}
	begin := outbox.SQL(s.db, nil)
	h := outbox.Once(s.outbox, begin, apply)
	if batch {
		h = outbox.OnceBatch(s.outbox, begin, func(ctx context.Context, tx *sql.Tx, events []bus.Event[placed]) error {
			var failed []error
			for _, e := range events {
				err := apply(ctx, tx, e.Value)
				if err != nil && rand.N(2) == 0 {
					return err
				}
				failed = append(failed, err)
			}
			return bus.PerMessage(failed)
		})
	}
	counted := bus.Around(func(ctx context.Context, c bus.Call) error {
		err := c.Next(ctx)
		for _, e := range bus.Outcomes(err, c.Len()) {
			if e == nil && handled.Add(1) == 3*n {
				close(all)
			}
		}
		return err
	})
	var sum int64
	var msgs []*bus.Message
	for i := range n {
		cents := rand.Int64N(1000)
		sum += cents
		for range 3 {
			msgs = append(msgs, &bus.Message{ID: fmt.Sprint("m", i), Key: fmt.Sprint(rand.N(20)), Type: "order.placed", Payload: fmt.Appendf(nil, `{"Cents":%d}`, cents)})
		}
	}
	rand.Shuffle(len(msgs), func(i, j int) { msgs[i], msgs[j] = msgs[j], msgs[i] })
	if err := b.PublishMessages(t.Context(), topic, msgs...); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r := router.New(b, "billing", router.Policy{Retry: router.Exponential(time.Millisecond, 10*time.Millisecond, 1000)}, router.Workers(4))
		r.Handle(topic, h, router.Use(counted))
		bustest.Run(t, r)
	}
	select {
	case <-all:
	case <-time.After(patience):
		t.Fatalf("%d of %d deliveries were handled", handled.Load(), 3*n)
	}
	if got := s.count(t, "SELECT cents FROM "+account); int64(got) != sum {
		t.Errorf("the sum is %d, want %d", got, sum)
	}
	if got := s.count(t, "SELECT COUNT(*) FROM "+s.table("outbox")+" WHERE topic = ?", outputs); got != n {
		t.Errorf("%d outputs, want %d", got, n)
	}
	if got := s.count(t, "SELECT COUNT(*) FROM "+s.table("inbox")+" WHERE topic = ?", topic); got != n {
		t.Errorf("%d ids, want %d", got, n)
	}
}

// TestOnceByHand: a handler with its transaction can be tested without a broker; another topic or
// group is another effect.
func TestOnceByHand(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	b := bustest.New(t)
	calls, succeeded := 0, 0
	h := outbox.Once(s.outbox, outbox.SQL(s.db, nil), func(ctx context.Context, _ *sql.Tx, e placed) error {
		calls++
		if err := bus.OnSuccess(ctx, func(context.Context) error { succeeded++; return nil }); err != nil {
			t.Error(err)
		}
		return bus.Emit(ctx, "out", e)
	})
	handle := func(topic, group, id string) {
		t.Helper()
		m := &bus.Message{ID: id, Payload: []byte("{}")}
		ctx := engine.New(t.Context(), b, bus.Delivery{Message: m, Topic: topic, Group: group})
		if err := h.Handle(ctx, m); err != nil {
			t.Fatal(err)
		}
		if err := engine.Flush(ctx, ctx, nil); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		handle("a", "g", "1")
		handle("b", "g", "1")
		handle("a", "h", "1")
	}
	if calls != 3 || succeeded != 3 {
		t.Errorf("%d calls, %d successes", calls, succeeded)
	}
	if n := s.count(t, "SELECT COUNT(*) FROM "+s.table("outbox")); n != 3 {
		t.Errorf("%d outputs", n)
	}
	m := &bus.Message{Payload: []byte("{}")}
	if err := h.Handle(engine.New(t.Context(), b, bus.Delivery{Message: m}), m); !bus.IsPermanent(err) {
		t.Errorf("without an id: %v", err)
	}
}

// TestPoisonInABatch: one bad message does not use up the tries of the others in its batch.
func TestPoisonInABatch(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	b := bustest.New(t)
	h := outbox.OnceBatch(s.outbox, outbox.SQL(s.db, nil), func(_ context.Context, _ *sql.Tx, events []bus.Event[placed]) error {
		for _, e := range events {
			if e.Value.Number == 3 {
				return errors.New("bad")
			}
		}
		return nil
	})
	var msgs []*bus.Message
	for i := range 6 {
		msgs = append(msgs, &bus.Message{ID: fmt.Sprint(i), Payload: fmt.Appendf(nil, `{"Number":%d}`, i)})
	}
	err := h.HandleBatch(engine.NewBatch(t.Context(), b, bus.Delivery{Topic: "t", Group: "g"}, msgs), msgs)
	for i, err := range bus.Outcomes(err, len(msgs)) {
		if (err != nil) != (i == 3) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if n := s.count(t, "SELECT COUNT(*) FROM "+s.table("inbox")); n != 5 {
		t.Errorf("%d ids", n)
	}
}

func TestPrune(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		b := bustest.New(t)
		h := outbox.Once(s.outbox, outbox.SQL(s.db, nil), func(context.Context, *sql.Tx, placed) error { return nil })
		for i := range 3 {
			m := &bus.Message{ID: fmt.Sprint(i), Payload: []byte("{}")}
			if err := h.Handle(engine.New(t.Context(), b, bus.Delivery{Message: m, Topic: "t", Group: "g"}), m); err != nil {
				t.Fatal(err)
			}
		}
		const day = 24 * 3600 * 1_000_000
		s.exec(t, "UPDATE "+s.table("inbox")+" SET at = at - ? WHERE id <> '2'", int64(9*day))
		s.exec(t, "UPDATE "+s.table("inbox")+" SET at = at - ? WHERE id = '2'", int64(6*day))
		if n, err := s.outbox.Prune(t.Context(), s.db); n != 2 || err != nil {
			t.Errorf("%d %v", n, err)
		}
		if st, err := s.outbox.Status(t.Context(), s.db); err != nil || st.Inbox != 1 {
			t.Errorf("%+v %v", st, err)
		}
	})
}

// counted counts the statements of the outbox in a transaction.
type counted struct {
	outbox.Execer
	n *int
}

func (c counted) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	*c.n++
	return c.Execer.ExecContext(ctx, query, args...)
}

// TestInboxCostsOneStatement for each transaction, however many messages it handles.
func TestInboxCostsOneStatement(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		b := bustest.New(t)
		transactions, statements := 0, 0
		begin := func(ctx context.Context, f func(*sql.Tx, outbox.Execer) error) error {
			transactions++
			return outbox.SQL(s.db, nil)(ctx, func(tx *sql.Tx, x outbox.Execer) error { return f(tx, counted{x, &statements}) })
		}
		one := outbox.Once(s.outbox, begin, func(context.Context, *sql.Tx, placed) error { return nil })
		many := outbox.OnceBatch(s.outbox, begin, func(context.Context, *sql.Tx, []bus.Event[placed]) error { return nil })
		d := bus.Delivery{Topic: "t", Group: "g"}
		for i, size := range []int{1, 1, 2, 100, 1000} {
			transactions, statements = 0, 0
			msgs := make([]*bus.Message, size)
			for j := range msgs {
				msgs[j] = &bus.Message{ID: fmt.Sprint(i, "-", j), Payload: []byte("{}")}
			}
			var err error
			if size == 1 {
				d.Message = msgs[0]
				err = one.Handle(engine.New(t.Context(), b, d), msgs[0])
			} else {
				err = many.HandleBatch(engine.NewBatch(t.Context(), b, d, msgs), msgs)
			}
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 && (transactions != 1 || statements != 1) { // the first one also prunes, as one a minute does
				t.Errorf("%d messages: %d transactions, %d statements", size, transactions, statements)
			}
		}
	})
}
