package pgxoutbox_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/adapters/sql/postgres"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/pgxoutbox"
	"github.com/millrace-go/millrace/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testlog.Strict(m)) }

// patience bounds a test's wait for events that should come in milliseconds.
const patience = 30 * time.Second

type placed struct{ ID int }

// fixture is an outbox with its configuration and a pool, in a schema that ends with the test.
func fixture(t *testing.T) (*outbox.Outbox, outbox.Config, *pgxpool.Pool) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), brokertest.URL(t, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	config := outbox.Config{Schema: brokertest.Schema(t)}
	o, err := outbox.New(outbox.Postgres, config)
	if err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() { db.Close() })
	if err := o.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return o, config, pool
}

// TestListen: a relay that hardly ever looks hears of a commit in another process.
func TestListen(t *testing.T) {
	o, config, pool := fixture(t)
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	b := bustest.New(t)
	heard := make(chan struct{}, 100)
	listen := pgxoutbox.Listen(pool)
	relay, err := o.NewRelay(db, b, outbox.RelayConfig{Poll: time.Minute, Listen: func(ctx context.Context, channel string, ready, word func()) error {
		return listen(ctx, channel, func() { ready(); heard <- struct{}{} }, word)
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- relay.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	}()
	<-heard
	// Another process has an outbox of its own, with no relay in it.
	other, err := outbox.New(outbox.Postgres, config)
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan placed, 100)
	r := router.New(b, "g")
	router.On(r, "orders", func(_ context.Context, e placed) error { came <- e; return nil })
	bustest.Run(t, r)
	for i := range 20 {
		err := outbox.Do(t.Context(), other, pgxoutbox.Pool(pool, pgx.TxOptions{}), func(_ pgx.Tx, p bus.Publisher) error {
			return p.Publish(t.Context(), "orders", placed{i})
		})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-came:
			if e.ID != i {
				t.Errorf("%v came, want %d", e, i)
			}
		case <-time.After(patience):
			t.Fatal("nobody heard")
		}
	}
}

// TestOnce: the handler's transaction is one of pgx, and rolls back with the handler.
func TestOnce(t *testing.T) {
	testlog.Expect(t, "handler failed")
	o, _, pool := fixture(t)
	b := bustest.New(t)
	fail := true
	calls := 0
	h := outbox.Once(o, pgxoutbox.Pool(pool, pgx.TxOptions{}), func(ctx context.Context, tx pgx.Tx, e placed) error {
		calls++
		if _, err := tx.Exec(ctx, "SELECT $1::int", e.ID); err != nil {
			return err
		}
		if err := bus.Emit(ctx, "out", e); err != nil {
			return err
		}
		if fail {
			return errors.New("failed on purpose")
		}
		return nil
	})
	m := &bus.Message{ID: "1", Payload: []byte(`{"ID":7}`)}
	handle := func() error {
		return h.Handle(engine.New(t.Context(), b, bus.Delivery{Message: m, Topic: "t", Group: "g"}), m)
	}
	if err := handle(); err == nil {
		t.Error("no error")
	}
	fail = false
	for range 3 {
		if err := handle(); err != nil {
			t.Error(err)
		}
	}
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	if st, err := o.Status(t.Context(), db); err != nil || st.Inbox != 1 || st.Pending != 1 || calls != 2 {
		t.Errorf("%+v %v, %d calls", st, err, calls)
	}
}

// TestPreparedTransaction: a prepared transaction that is left open keeps only its own messages.
func TestPreparedTransaction(t *testing.T) {
	o, _, pool := fixture(t)
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	var allowed int
	if err := pool.QueryRow(t.Context(), "SELECT current_setting('max_prepared_transactions')::int").Scan(&allowed); err != nil {
		t.Fatal(err)
	}
	if allowed == 0 {
		t.Skip("the server has max_prepared_transactions=0")
	}
	name := "outbox_" + bus.NewID()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { _, err := conn.Exec(t.Context(), "BEGIN"); return err },
		func() error { return o.Publish(t.Context(), pgxoutbox.Tx(conn), "t", placed{0}) },
		func() error { _, err := conn.Exec(t.Context(), "PREPARE TRANSACTION '"+name+"'"); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	conn.Release()
	b := bustest.New(t)
	came := make(chan placed, 100)
	r := router.New(b, "g")
	router.On(r, "t", func(_ context.Context, e placed) error { came <- e; return nil })
	bustest.Run(t, r)
	relay, err := o.NewRelay(db, b, outbox.RelayConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- relay.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	}()
	for i := 1; i <= 20; i++ {
		err := outbox.Do(t.Context(), o, pgxoutbox.Pool(pool, pgx.TxOptions{}), func(_ pgx.Tx, p bus.Publisher) error {
			return p.Publish(t.Context(), "t", placed{i})
		})
		if err != nil {
			t.Fatal(err)
		}
		if e := <-came; e.ID != i {
			t.Errorf("%v came, want %d", e, i)
		}
	}
	if _, err := pool.Exec(t.Context(), "COMMIT PREPARED '"+name+"'"); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-came:
		if e.ID != 0 {
			t.Errorf("%v came last", e)
		}
	case <-time.After(patience):
		t.Fatal("what was prepared was skipped")
	}
}

// TestPreparedMeanwhile: a transaction that drew its number before a relay looked, and was prepared
// after it, is not passed over. When it commits, its message comes before later messages of the
// same key.
func TestPreparedMeanwhile(t *testing.T) {
	o, _, pool := fixture(t)
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	b := bustest.New(t)
	came := make(chan placed, 100)
	r := router.New(b, "g", router.Workers(1))
	router.On(r, "t", func(_ context.Context, e placed) error { came <- e; return nil })
	bustest.Run(t, r)
	relay, err := o.NewRelay(db, b, outbox.RelayConfig{Poll: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- relay.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	}()
	next := func(want int) {
		t.Helper()
		select {
		case e := <-came:
			if e.ID != want {
				t.Errorf("%d came, want %d", e.ID, want)
			}
		case <-time.After(patience):
			t.Fatalf("%d did not come", want)
		}
	}
	// others writes for long enough that the relay's floor would move on.
	others := func(from int) {
		for i := range 20 {
			err := outbox.Do(t.Context(), o, pgxoutbox.Pool(pool, pgx.TxOptions{}), func(_ pgx.Tx, p bus.Publisher) error {
				return p.Publish(t.Context(), "t", placed{from + i})
			})
			if err != nil {
				t.Fatal(err)
			}
			next(from + i)
			time.Sleep(20 * time.Millisecond)
		}
	}
	name := "outbox_" + bus.NewID()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exec := func(text string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	exec("BEGIN")
	if err := o.Publish(t.Context(), pgxoutbox.Tx(conn), "t", placed{0}, bus.WithKey("k")); err != nil {
		t.Fatal(err)
	}
	others(10)
	exec("PREPARE TRANSACTION '" + name + "'")
	others(40)
	exec("COMMIT PREPARED '" + name + "'")
	conn.Release()
	if err := o.Publish(t.Context(), pgxoutbox.Tx(pool), "t", placed{1}, bus.WithKey("k")); err != nil {
		t.Fatal(err)
	}
	next(0)
	next(1)
}

// TestOnceInBus: a handler's transaction of pgx settles its message in a bus in the same database,
// and publishes its outputs.
func TestOnceInBus(t *testing.T) {
	testlog.Expect(t, "handler failed")
	_, _, pool := fixture(t)
	schema := "pgxinbus_" + bus.NewID()[24:]
	b, err := postgres.New(t.Context(), pool, postgres.Config{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := b.Close()
		if _, derr := pool.Exec(context.Background(), "DROP SCHEMA "+schema+" CASCADE"); err != nil || derr != nil {
			t.Error(err, derr)
		}
	})
	if _, err := pool.Exec(t.Context(), "CREATE TABLE "+schema+".effects (id INT PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	const n = 100
	for i := range n {
		if err := b.Publish(t.Context(), "orders", placed{i}); err != nil {
			t.Fatal(err)
		}
	}
	tried := map[int]bool{}
	var mu sync.Mutex
	r := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Millisecond}})
	r.Handle("orders", outbox.OnceInBus(pgxoutbox.Pool(pool, pgx.TxOptions{}), func(ctx context.Context, tx pgx.Tx, e placed) error {
		if _, err := tx.Exec(ctx, "INSERT INTO "+schema+".effects VALUES ($1)", e.ID); err != nil {
			return err
		}
		if err := bus.Emit(ctx, "out", e); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if !tried[e.ID] {
			tried[e.ID] = true
			return errors.New("not the first time")
		}
		return nil
	}))
	outs := make(chan placed, 2*n)
	router.On(r, "out", func(_ context.Context, e placed) error { outs <- e; return nil })
	bustest.Run(t, r)
	seen := map[int]bool{}
	for len(seen) < n {
		select {
		case e := <-outs:
			if seen[e.ID] {
				t.Errorf("%d came twice", e.ID)
			}
			seen[e.ID] = true
		case <-time.After(patience):
			t.Fatalf("%d outputs came", len(seen))
		}
	}
	var effects int
	if err := pool.QueryRow(t.Context(), "SELECT COUNT(*) FROM "+schema+".effects").Scan(&effects); err != nil || effects != n {
		t.Errorf("%d effects: %v", effects, err)
	}
}
