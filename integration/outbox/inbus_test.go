package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// effects is a user's table, which adds up each effect, and the handlers' work on it.
type effects struct {
	store   *store
	table   string
	outputs string
	fails   bool // at random
}

func (s *store) effects(t testing.TB, fails bool) *effects {
	e := &effects{store: s, table: s.own(t, "account", "(id INT NOT NULL PRIMARY KEY, cents BIGINT NOT NULL, n BIGINT NOT NULL)"), outputs: unique("payments"), fails: fails}
	for i := range accounts {
		s.exec(t, "INSERT INTO "+e.table+" VALUES (?, 0, 0)", i)
	}
	return e
}

// accounts is how many rows the effects are spread over, so that transactions do not wait for each
// other only.
const accounts = 8

func (e *effects) apply(ctx context.Context, tx *sql.Tx, p placed) error {
	if _, err := tx.ExecContext(ctx, e.store.args("UPDATE "+e.table+" SET cents = cents + ?, n = n + 1 WHERE id = ?"), p.Cents, p.Number%accounts); err != nil {
		return err
	}
	if err := bus.Emit(ctx, e.outputs, paid{p.Cents}, bus.WithKey(fmt.Sprint(p.Number%accounts))); err != nil {
		return err
	}
	if e.fails && rand.N(4) == 0 {
		return errOnPurpose
	}
	return nil
}

var errOnPurpose = errors.New("failed on purpose")

// handler is apply as a handler, of single messages or of batches.
func (e *effects) handler(begin outbox.Transactor[*sql.Tx], batch bool) bus.Handler {
	if !batch {
		return outbox.OnceInBus(begin, e.apply)
	}
	return outbox.OnceBatchInBus(begin, func(ctx context.Context, tx *sql.Tx, events []bus.Event[placed]) error {
		failed := make([]error, len(events))
		for a := range accounts { // rows are locked in one order
			for i, ev := range events {
				if ev.Value.Number%accounts != a {
					continue
				}
				if failed[i] = e.apply(ctx, tx, ev.Value); failed[i] == nil {
					continue
				}
				if !errors.Is(failed[i], errOnPurpose) || rand.N(2) == 0 {
					return failed[i]
				}
			}
		}
		return bus.PerMessage(failed)
	})
}

// orders makes messages, and returns the sum of their cents.
func orders(n int) (msgs []*bus.Message, sum int64) {
	for i := range n {
		cents := rand.Int64N(1000)
		sum += cents
		msgs = append(msgs, &bus.Message{ID: fmt.Sprint("m", i), Key: fmt.Sprint(rand.N(40)), Type: "order.placed", Payload: fmt.Appendf(nil, `{"Number":%d,"Cents":%d}`, i, cents)})
	}
	return msgs, sum
}

// judge compares the user's table with the orders, and the emitted messages with the effects.
func (e *effects) judge(t *testing.T, b *bus.Bus, n int, sum int64) {
	t.Helper()
	if got := e.store.count(t, "SELECT SUM(cents) FROM "+e.table); int64(got) != sum {
		t.Errorf("the sum is %d, want %d", got, sum)
	}
	if got := e.store.count(t, "SELECT SUM(n) FROM "+e.table); got != n {
		t.Errorf("%d effects, want %d", got, n)
	}
	lines := make([]*bus.Message, accounts)
	for i := range lines {
		lines[i] = &bus.Message{Type: "end", Key: fmt.Sprint(i)}
	}
	if err := b.PublishMessages(t.Context(), e.outputs, lines...); err != nil {
		t.Fatal(err)
	}
	outputs := 0
	for range receiveUntil(t, b, e.outputs, accounts) {
		outputs++
	}
	if outputs != n {
		t.Errorf("%d outputs, want %d", outputs, n)
	}
}

// running runs a router until stop is called, at the latest at the test's end.
func running(t *testing.T, r *router.Router) (stop func()) {
	t.Helper()
	bustest.Run(t, r)
	return func() {
		if err := r.Shutdown(context.Background()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	}
}

// receiveUntil returns a topic's messages, without those of type "end". It stops after ends of
// these.
func receiveUntil(t *testing.T, b *bus.Bus, topic string, ends int) (msgs []*bus.Message) {
	t.Helper()
	r := router.New(b, unique("reader"), router.Workers(1))
	all := make(chan struct{})
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		if m.Type != "end" {
			msgs = append(msgs, m)
		} else if ends--; ends == 0 {
			close(all)
		}
		return nil
	})
	stop := running(t, r)
	select {
	case <-all:
	case <-time.After(patience):
		t.Fatalf("only %d messages came", len(msgs))
	}
	stop()
	return msgs
}

// await waits until a group has finished a topic, for which there is no event. Nothing is left in
// the log, and parked messages have had their effect, too.
func (e *effects) await(t *testing.T, b *bus.Bus, topic, group string, n int) {
	t.Helper()
	lagger, _ := bus.As[driver.Lagger](b)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := lagger.Lag(ctx, topic, group)
		if err == nil && left.Messages == 0 && e.store.count(t, "SELECT SUM(n) FROM "+e.table) >= n {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d messages are left (%v), %d effects", left.Messages, err, e.store.count(t, "SELECT SUM(n) FROM "+e.table))
		}
	}
}

// TestOnceInBus: handlers fail at random, single or in batches, in two members of the group while
// others come and go; the sum in the table is exact to the cent, and there are as many outputs as
// effects.
func TestOnceInBus(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		for _, batch := range []bool{false, true} {
			t.Run(fmt.Sprintf("batch=%v", batch), func(t *testing.T) {
				n := 400
				if s.dialect == outbox.SQLite { // one writer at a time; a waiting one looks now and then
					n = 150
				}
				b := openBus(t, s.busURL(t, "same"), bus.WithLogger(testlog.New(t, "the message is tried again")))
				topic, e := unique("orders"), s.effects(t, true)
				msgs, sum := orders(n)
				if err := b.PublishMessages(t.Context(), topic, msgs...); err != nil {
					t.Fatal(err)
				}
				var calls atomic.Int64
				moved := make(chan struct{})
				counted := bus.Around(func(ctx context.Context, c bus.Call) error {
					if calls.Add(int64(c.Len())) > int64(n/2) {
						select {
						case moved <- struct{}{}:
						default:
						}
					}
					return c.Next(ctx)
				})
				member := func() func() {
					r := router.New(b, "billing", router.Policy{Retry: router.Exponential(time.Millisecond, 10*time.Millisecond, 1000)}, router.Workers(4))
					r.Handle(topic, e.handler(outbox.SQL(s.db, nil), batch), router.Use(counted))
					return running(t, r)
				}
				stop := member()
				member()
				<-moved
				member() // lanes move to it
				stop()
				e.await(t, b, topic, "billing", n)
				e.judge(t, b, n, sum)
			})
		}
	})
}

// TestOnceInBusAtTheStart: where it cannot be, it is an error at the start.
func TestOnceInBusAtTheStart(t *testing.T) {
	none := func(context.Context, *sql.Tx, placed) error { return nil }
	sqlite := newStore(t, outbox.SQLite)
	r := router.New(bustest.New(t), "g")
	r.Handle("t", outbox.OnceInBus(outbox.SQL(sqlite.db, nil), none))
	if err := r.Check(); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "the bus is in no database: memory; use outbox.Once") {
		t.Errorf("in no database: %v", err)
	}
	databases(t, func(t *testing.T, s *store) {
		b := openBus(t, s.busURL(t, "same"))
		r := router.New(b, "g", router.Guarantee(router.AtMostOnce))
		r.Handle(unique("t"), outbox.OnceInBus(outbox.SQL(s.db, nil), none))
		if err := r.Check(); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "Guarantee cannot be at most once") {
			t.Errorf("at most once: %v", err)
		}
		run := func(begin outbox.Transactor[*sql.Tx]) error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			r := router.New(b, "g")
			r.Handle(unique("t"), outbox.OnceInBus(begin, none))
			return r.Run(ctx)
		}
		other := newStore(t, outbox.SQLite)
		if err := run(outbox.SQL(other.db, nil)); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "not in the database of the bus") {
			t.Errorf("another database: %v", err)
		}
		if s.dialect == outbox.Postgres {
			err := run(outbox.SQL(s.db, &sql.TxOptions{Isolation: sql.LevelRepeatableRead}))
			if !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "isolation level must be read committed") {
				t.Errorf("repeatable read: %v", err)
			}
		}
	})
}

// TestOnceInBusAround: after the commit of the handler's transaction, a failure around the handler
// changes nothing any more. A middleware that calls the handler again does not repeat the effect.
func TestOnceInBusAround(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		b := openBus(t, s.busURL(t, "same"), bus.WithLogger(testlog.New(t, "a handler failed after its message was settled")))
		topic, e := unique("orders"), s.effects(t, false)
		const n = 20
		msgs, sum := orders(n)
		if err := b.PublishMessages(t.Context(), topic, msgs...); err != nil {
			t.Fatal(err)
		}
		var ended atomic.Int64
		again := bus.Around(func(ctx context.Context, c bus.Call) error {
			err := bus.OnEnd(ctx, func(context.Context, func(*bus.Message) bool) error { ended.Add(1); return nil })
			return errors.Join(err, c.Next(ctx), c.Next(ctx), errors.New("too late"))
		})
		r := router.New(b, "billing", router.Policy{Retry: router.Never})
		r.Handle(topic, e.handler(outbox.SQL(s.db, nil), false), router.Use(again))
		running(t, r)
		e.await(t, b, topic, "billing", n)
		e.judge(t, b, n, sum)
		store, err := driver.Of(b).Poison(t.Context(), "billing")
		if err != nil {
			t.Fatal(err)
		}
		for entry, err := range store.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			t.Errorf("%s is poisoned: %s", entry.Message.ID, entry.Failure.Text)
		}
		if ended.Load() < n {
			t.Errorf("%d calls have ended", ended.Load())
		}
	})
}

// TestParkedWhileItsHandlerRuns: the followers of a message fill the bound in flight, so the
// message is parked with them while its handler runs. The handler's transaction settles it there.
func TestParkedWhileItsHandlerRuns(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		u := s.busURL(t, "same")
		b := openBus(t, u, bus.WithLogger(testlog.New(t)))
		topic, e := unique("orders"), s.effects(t, false)
		const n = 50
		msgs, sum := orders(n)
		for _, m := range msgs {
			m.Key = "hot"
		}
		if err := b.PublishMessages(t.Context(), topic, msgs...); err != nil {
			t.Fatal(err)
		}
		parked := "SELECT COUNT(*) FROM millrace_parked WHERE pos > 0"
		if _, name, ok := strings.Cut(u, "schema="); ok {
			parked = strings.Replace(parked, "millrace_", name+".", 1)
		} else if _, name, ok := strings.Cut(u, "prefix="); ok {
			parked = strings.Replace(parked, "millrace_", name, 1)
		}
		var calls atomic.Int64
		waits := bus.Around(func(ctx context.Context, c bus.Call) error {
			if calls.Add(1) == 1 {
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for s.count(t, parked) == 0 { // nobody tells of it
					select {
					case <-tick.C:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			}
			return c.Next(ctx)
		})
		r := router.New(b, "billing", router.InFlight(16, 1<<20), router.Workers(4))
		r.Handle(topic, e.handler(outbox.SQL(s.db, nil), false), router.Use(waits))
		running(t, r)
		e.await(t, b, topic, "billing", n)
		e.judge(t, b, n, sum)
	})
}
