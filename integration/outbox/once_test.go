package outbox_test

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// once calls handlers with messages of one topic and group, as a router does.
type once struct {
	t     *testing.T
	bus   *bus.Bus
	one   bus.Handler
	many  bus.BatchHandler
	calls map[string]int // of both, by id
}

func (s *store) once(t *testing.T, begin outbox.Transactor[*sql.Tx]) *once {
	o := &once{t: t, bus: openBus(t, "memory:"), calls: map[string]int{}}
	o.one = outbox.Once(s.outbox, begin, func(ctx context.Context, _ *sql.Tx, _ placed) error {
		o.calls[bus.DeliveryFrom(ctx).ID]++
		return nil
	})
	o.many = outbox.OnceBatch(s.outbox, begin, func(_ context.Context, _ *sql.Tx, events []bus.Event[placed]) error {
		for _, e := range events {
			o.calls[e.ID]++
		}
		return nil
	})
	return o
}

func (o *once) single(id string) error {
	m := &bus.Message{ID: id, Payload: []byte("{}")}
	return o.one.Handle(engine.New(o.t.Context(), o.bus, bus.Delivery{Message: m, Topic: "t", Group: "g"}), m)
}

func (o *once) batch(ids ...string) []error {
	msgs := make([]*bus.Message, len(ids))
	for i, id := range ids {
		msgs[i] = &bus.Message{ID: id, Payload: []byte("{}")}
	}
	return bus.Outcomes(o.many.HandleBatch(engine.NewBatch(o.t.Context(), o.bus, bus.Delivery{Topic: "t", Group: "g"}, msgs), msgs), len(msgs))
}

// TestIDsThatCannotBeRemembered fail for good, with a hint, and by themselves.
func TestIDsThatCannotBeRemembered(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		o := s.once(t, outbox.SQL(s.db, nil))
		bad := []string{"", "a\xff", "nul\x00", "é\x00", strings.Repeat("x", 256), driver.TransientID("t", bus.Token{Epoch: 1})}
		for _, id := range bad {
			if err := o.single(id); !bus.IsPermanent(err) || !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "publish it with an id") {
				t.Errorf("%.20q: %v", id, err)
			}
		}
		for i, err := range o.batch(append([]string{"good", "é"}, bad...)...) {
			if i < 2 && err != nil || i >= 2 && !bus.IsPermanent(err) {
				t.Errorf("%d: %v", i, err)
			}
		}
		if len(o.calls) != 2 || o.calls["good"] != 1 || o.calls["é"] != 1 {
			t.Errorf("%v", o.calls)
		}
	})
}

// TestIDsAreBytes: ids that look alike belong to different messages, and each has its effect once,
// alone or in a batch.
func TestIDsAreBytes(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		o := s.once(t, outbox.SQL(s.db, nil))
		ids := []string{"7", "7 ", " 7", "a", "A", "é", "e\u0301", strings.Repeat("é", 127), strings.Repeat("é", 127) + " "}
		for range 2 {
			for _, id := range ids[:3] {
				if err := o.single(id); err != nil {
					t.Fatal(err)
				}
			}
			for i, err := range o.batch(append(ids, "twice", "twice")...) {
				if err != nil {
					t.Errorf("%d: %v", i, err)
				}
			}
		}
		for _, id := range append(ids, "twice") {
			if o.calls[id] != 1 {
				t.Errorf("%q: %d calls", id, o.calls[id])
			}
		}
	})
}

// TestRepeatsAreCountedWhateverTheConnectionSays: MySQL has two ways to count rows.
func TestRepeatsAreCountedWhateverTheConnectionSays(t *testing.T) {
	s := newStore(t, outbox.MySQL)
	db, err := sql.Open(s.driver, s.dsn+"&clientFoundRows=true")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	o := s.once(t, outbox.SQL(db, nil))
	for range 2 {
		if err := errors.Join(append(o.batch("1", "2"), o.single("3"), o.single("1"))...); err != nil {
			t.Fatal(err)
		}
	}
	if len(o.calls) != 3 || o.calls["1"] != 1 || o.calls["2"] != 1 || o.calls["3"] != 1 {
		t.Errorf("%v", o.calls)
	}
}

// TestABatchStopsWithTheDatabase: its messages are not tried by themselves when no transaction
// begins any more.
func TestABatchStopsWithTheDatabase(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	begins, away, refused := 0, false, errors.New("connection refused")
	begin := func(ctx context.Context, f func(*sql.Tx, outbox.Execer) error) error {
		if begins++; away {
			return refused
		}
		return outbox.SQL(s.db, nil)(ctx, f)
	}
	h := outbox.OnceBatch(s.outbox, begin, func(context.Context, *sql.Tx, []bus.Event[placed]) error {
		away = true
		return sqldriver.ErrBadConn
	})
	msgs := make([]*bus.Message, 500)
	for i := range msgs {
		msgs[i] = &bus.Message{ID: fmt.Sprint(i), Payload: []byte("{}")}
	}
	err := h.HandleBatch(engine.NewBatch(t.Context(), bustest.New(t), bus.Delivery{Topic: "t", Group: "g"}, msgs), msgs)
	for i, err := range bus.Outcomes(err, len(msgs)) {
		if !errors.Is(err, refused) {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if begins != 2 {
		t.Errorf("%d transactions were begun", begins)
	}
}

// TestAFailedCommitIsOfOneMessage: a message that fails only at the commit of its transaction does
// not take the others with it.
func TestAFailedCommitIsOfOneMessage(t *testing.T) {
	s := newStore(t, outbox.Postgres)
	table := s.own(t, "deferred", "(n INT UNIQUE DEFERRABLE INITIALLY DEFERRED)")
	s.exec(t, "INSERT INTO "+table+" VALUES (3)")
	h := outbox.OnceBatch(s.outbox, outbox.SQL(s.db, nil), func(ctx context.Context, tx *sql.Tx, events []bus.Event[placed]) error {
		for _, e := range events {
			if _, err := tx.ExecContext(ctx, "INSERT INTO "+table+" VALUES ($1)", e.Value.Number); err != nil {
				return err
			}
		}
		return nil
	})
	msgs := make([]*bus.Message, 6)
	for i := range msgs {
		msgs[i] = &bus.Message{ID: fmt.Sprint(i), Payload: fmt.Appendf(nil, `{"Number":%d}`, i)}
	}
	err := h.HandleBatch(engine.NewBatch(t.Context(), bustest.New(t), bus.Delivery{Topic: "t", Group: "g"}, msgs), msgs)
	for i, err := range bus.Outcomes(err, len(msgs)) {
		if (err != nil) != (i == 3) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestTransactorThatKeepsErrorsToItself rolls back, and says that all is well: nothing is settled.
func TestTransactorThatKeepsErrorsToItself(t *testing.T) {
	testlog.Expect(t, "handler failed")
	s := newStore(t, outbox.SQLite)
	silent := func(ctx context.Context, f func(*sql.Tx, outbox.Execer) error) error {
		_ = outbox.SQL(s.db, nil)(ctx, f)
		return nil
	}
	failed := errors.New("failed")
	h := outbox.Once(s.outbox, silent, func(context.Context, *sql.Tx, placed) error { return failed })
	m := &bus.Message{ID: "1", Payload: []byte("{}")}
	if err := h.Handle(engine.New(t.Context(), bustest.New(t), bus.Delivery{Message: m, Topic: "t", Group: "g"}), m); !errors.Is(err, failed) {
		t.Errorf("once: %v", err)
	}
	if err := outbox.Do(t.Context(), s.outbox, silent, func(*sql.Tx, bus.Publisher) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("do: %v", err)
	}
	never := func(context.Context, func(*sql.Tx, outbox.Execer) error) error { return nil }
	if err := outbox.Do(t.Context(), s.outbox, never, func(*sql.Tx, bus.Publisher) error { return nil }); err == nil {
		t.Error("a function that was not called succeeded")
	}

	b := openBus(t, s.busURL(t, "same"))
	topic, e := unique("orders"), s.effects(t, false)
	tries := 0
	r := router.New(b, "billing", router.Policy{Retry: router.Exponential(time.Millisecond, time.Millisecond, 5)})
	r.Handle(topic, outbox.OnceInBus(silent, func(ctx context.Context, tx *sql.Tx, p placed) error {
		if err := e.apply(ctx, tx, p); err != nil {
			return err
		}
		if tries++; tries < 3 {
			return failed
		}
		return nil
	}))
	running(t, r)
	msgs, sum := orders(1)
	if err := b.PublishMessages(t.Context(), topic, msgs...); err != nil {
		t.Fatal(err)
	}
	e.await(t, b, topic, "billing", 1)
	e.judge(t, b, 1, sum)
}

// sqlStateError is an error as drivers for PostgreSQL make them.
type sqlStateError string

func (s sqlStateError) Error() string    { return "SQLSTATE " + string(s) }
func (s sqlStateError) SQLState() string { return string(s) }

// TestConflictsAreRunAgain, with nothing left of the run before; but not for ever.
func TestConflictsAreRunAgain(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	for _, tc := range []struct {
		err   error
		fails int // so often
		calls int
	}{
		{sqlStateError("40001"), 2, 3},
		{fmt.Errorf("update: %w", sqlStateError("40P01")), 1, 2},
		{errors.New("Error 1213 (40001): Deadlock found when trying to get lock; try restarting transaction"), 1, 2},
		{errors.New("Error 1205 (HY000): Lock wait timeout exceeded; try restarting transaction"), 1, 2},
		{errors.New("Error 1020 (HY000): Record has changed since last read in table 'account'; try restarting transaction"), 1, 2},
		{errors.New("Error 3572 (HY000): Statement aborted because lock(s) could not be acquired immediately and NOWAIT is set"), 1, 2},
		{sqlStateError("55P03"), 1, 2},
		{errors.New("database is locked (5) (SQLITE_BUSY)"), 1, 2},
		{sqlStateError("40001"), 1000, 6},
		{sqlStateError("23505"), 1000, 1},
		{bus.Permanent(sqlStateError("40001")), 1000, 1},
	} {
		topic, calls, succeeded := unique("t"), 0, 0
		h := outbox.Once(s.outbox, outbox.SQL(s.db, nil), func(ctx context.Context, _ *sql.Tx, e placed) error {
			calls++
			err := errors.Join(bus.Emit(ctx, "out", e), bus.OnSuccess(ctx, func(context.Context) error { succeeded++; return nil }))
			if err == nil && calls <= tc.fails {
				return tc.err
			}
			return err
		})
		before := s.count(t, "SELECT COUNT(*) FROM "+s.table("outbox"))
		m := &bus.Message{ID: "1", Payload: []byte("{}")}
		ctx := engine.New(t.Context(), bustest.New(t), bus.Delivery{Message: m, Topic: topic, Group: "g"})
		err := h.Handle(ctx, m)
		want := 1
		if tc.fails == 1000 {
			want = 0
			engine.Discard(ctx)
		} else if err := engine.Flush(ctx, ctx, nil); err != nil {
			t.Error(err)
		}
		outputs := s.count(t, "SELECT COUNT(*) FROM "+s.table("outbox")) - before
		if (err == nil) != (want == 1) || calls != tc.calls || succeeded != want || outputs != want {
			t.Errorf("%v: %v after %d calls, want %d; %d successes, %d outputs", tc.err, err, calls, tc.calls, succeeded, outputs)
		}
	}
}

// TestConflictsInTheBusAreRunAgain without a try of the policy, and leave nothing of the run
// before.
func TestConflictsInTheBusAreRunAgain(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		b := openBus(t, s.busURL(t, "same"))
		topic, e := unique("orders"), s.effects(t, false)
		var runs atomic.Int64
		r := router.New(b, "billing", router.Policy{Retry: router.Never})
		r.Handle(topic, outbox.OnceInBus(outbox.SQL(s.db, nil), func(ctx context.Context, tx *sql.Tx, p placed) error {
			if err := e.apply(ctx, tx, p); err != nil {
				return err
			}
			if runs.Add(1) <= 2 {
				return sqlStateError("40001")
			}
			return nil
		}))
		running(t, r)
		msgs, sum := orders(1)
		if err := b.PublishMessages(t.Context(), topic, msgs...); err != nil {
			t.Fatal(err)
		}
		e.await(t, b, topic, "billing", 1)
		e.judge(t, b, 1, sum)
	})
}

// TestConflictsOfDatabases: of two transactions at once, one must wait for the other's commit and
// then cannot go on. It is run again, and costs no try.
func TestConflictsOfDatabases(t *testing.T) {
	for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL} {
		t.Run(d.String(), func(t *testing.T) {
			s := newStore(t, d)
			if d == outbox.MySQL {
				s.snapshotIsolation(t)
			}
			testConflicts(t, s)
		})
	}
}

// snapshotIsolation switches on the default of MariaDB from 11.6 on: a transaction cannot change
// rows that changed since its first look.
func (s *store) snapshotIsolation(t *testing.T) {
	t.Helper()
	const variable = "innodb_snapshot_isolation"
	var name, value string
	if err := s.db.QueryRowContext(t.Context(), "SHOW VARIABLES LIKE '"+variable+"'").Scan(&name, &value); errors.Is(err, sql.ErrNoRows) {
		t.Skip("the server has no " + variable + ": only MariaDB has it")
	} else if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open(s.driver, s.dsn+"&"+variable+"=ON")
	if err != nil {
		t.Fatal(err)
	}
	s.db.Close()
	s.db = db
}

func testConflicts(t *testing.T, s *store) {
	begin := outbox.SQL(s.db, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	account := s.own(t, "account", "(id INT NOT NULL PRIMARY KEY, n BIGINT NOT NULL)")
	s.exec(t, "INSERT INTO "+account+" VALUES (1, 0)")
	var runs atomic.Int64
	both := make(chan struct{})
	h := outbox.Once(s.outbox, begin, func(ctx context.Context, tx *sql.Tx, _ placed) error {
		if _, err := tx.ExecContext(ctx, "SELECT n FROM "+account); err != nil { // the transaction's view of the database
			return err
		}
		if runs.Add(1) == 2 {
			close(both)
		}
		<-both // neither writes before both have looked
		_, err := tx.ExecContext(ctx, "UPDATE "+account+" SET n = n + 1")
		return err
	})
	errs := make(chan error)
	for _, id := range []string{"1", "2"} {
		go func() {
			m := &bus.Message{ID: id, Payload: []byte("{}")}
			errs <- h.Handle(engine.New(t.Context(), bustest.New(t), bus.Delivery{Message: m, Topic: "t", Group: "g"}), m)
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := s.count(t, "SELECT n FROM "+account); n != 2 || runs.Load() != 3 {
		t.Errorf("%d effects in %d runs, want 2 in 3", n, runs.Load())
	}
}

// TestOutputsOfOnceNameTheirCause: a chain of messages can be followed through the outbox.
func TestOutputsOfOnceNameTheirCause(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	b := openBus(t, "memory:")
	topic, outputs := unique("orders"), unique("payments")
	r := router.New(b, "billing")
	r.Handle(topic, outbox.Once(s.outbox, outbox.SQL(s.db, nil), func(ctx context.Context, _ *sql.Tx, e placed) error {
		return bus.Emit(ctx, outputs, paid{e.Cents})
	}), router.Use(middleware.Correlation()))
	bustest.Run(t, r)
	if err := b.Publish(t.Context(), topic, placed{}, bus.WithID("order-1"), bus.WithHeader(bus.HeaderCorrelationID, "chain-1")); err != nil {
		t.Fatal(err)
	}
	s.runRelay(t, b, outbox.RelayConfig{})
	m := receive(t, b, outputs, 1)[0]
	if correlation, cause := m.Headers.Get(bus.HeaderCorrelationID), m.Headers.Get(bus.HeaderCausationID); correlation != "chain-1" || cause != "order-1" {
		t.Errorf("correlation %q, cause %q", correlation, cause)
	}
}

// TestDelayThroughTheOutbox: it counts from when the message was written.
func TestDelayThroughTheOutbox(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		b := openBus(t, "memory:")
		topic := unique("reminders")
		const delay = 500 * time.Millisecond
		due := time.Now().Add(delay)
		err := outbox.Do(t.Context(), s.outbox, outbox.SQL(s.db, nil), func(_ *sql.Tx, p bus.Publisher) error {
			return errors.Join(p.Publish(t.Context(), topic, placed{Number: 1}, bus.WithDelay(delay)), p.Publish(t.Context(), topic, placed{Number: 2}, bus.WithKey("other")))
		})
		if err != nil {
			t.Fatal(err)
		}
		type arrival struct {
			number int
			at     time.Time
		}
		arrivals := make(chan arrival, 10)
		r := router.New(b, "g")
		r.Handle(topic, bus.Typed(func(_ context.Context, e placed) error { arrivals <- arrival{e.Number, time.Now()}; return nil }))
		bustest.Run(t, r)
		s.runRelay(t, b, outbox.RelayConfig{})
		for _, want := range []int{2, 1} {
			select {
			case a := <-arrivals:
				if a.number != want || want == 1 && a.at.Before(due.Add(-time.Millisecond)) {
					t.Errorf("%d came %v before it was due, want %d", a.number, due.Sub(a.at), want)
				}
			case <-time.After(patience):
				t.Fatalf("%d did not come", want)
			}
		}
	})
}
