package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/postgres"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/brokertest"
)

func newPool(t *testing.T, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	pc, err := pgxpool.ParseConfig(brokertest.URL(t, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	change(pc)
	pool, err := pgxpool.NewWithConfig(t.Context(), pc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// TestPreparedStatementsGo: a pooler or a hook resets the sessions, and with them the prepared
// statements.
func TestPreparedStatementsGo(t *testing.T) {
	db := database(t)
	pool := newPool(t, func(pc *pgxpool.Config) {
		pc.AfterRelease = func(c *pgx.Conn) bool {
			_, err := c.PgConn().Exec(context.Background(), "DISCARD ALL").ReadAll()
			return err == nil
		}
	})
	b, err := postgres.New(t.Context(), pool, postgres.Config{Schema: db.Prefix[:len(db.Prefix)-1]})
	if err != nil {
		t.Fatal(err)
	}
	topic := sqltest.Topic()
	s := sqltest.Subscribe(t, b, topic, "g", bus.Earliest, sqltest.NewObserver())
	for range 5 {
		sqltest.Publish(t, b, topic, sqltest.Texts("a", "b")...)
		sqltest.Settle(t, s, sqltest.Receive(t, s, 2)...)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// TestFullPool: handlers that hold all connections of the pool do not cost their process its lanes.
func TestFullPool(t *testing.T) {
	const lease = 600 * time.Millisecond
	db := database(t)
	pool := newPool(t, func(pc *pgxpool.Config) { pc.MaxConns = 2 })
	b, err := postgres.New(t.Context(), pool, postgres.Config{Schema: db.Prefix[:len(db.Prefix)-1], Lease: lease})
	if err != nil {
		t.Fatal(err)
	}
	o := sqltest.NewObserver()
	s := sqltest.Subscribe(t, b, sqltest.Topic(), "g", bus.Earliest, o)
	o.Await(t, 16)
	var held []*pgxpool.Conn
	for range 2 {
		c, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	sqltest.Keeps(t, o, lease, 0)
	for _, c := range held {
		c.Release()
	}
	sqltest.Close(t, s)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// TestDeferredConstraints: two handlers' transactions settle in one lane. One has locked a row that
// the other's deferred constraint looks at. The check must wait where the database sees both
// waiters, and not in the commit, with the lane's lock.
func TestDeferredConstraints(t *testing.T) {
	db := database(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, in := db.Open(t, "shards=1"), sqltest.Topic()
	sqltest.Publish(t, b, in, sqltest.Texts("a", "b")...)
	source, err := b.Driver().Subscribe(ctx, bus.Subscription{Topic: in, Group: "g", InFlight: 10, Bytes: 1 << 20, Transactional: true}, sqltest.NewObserver())
	if err != nil {
		t.Fatal(err)
	}
	s := source.(driver.JoiningSource)
	ds := sqltest.Receive(t, s, 2)
	for _, q := range []string{
		"CREATE TABLE " + db.Prefix + "parent (id int PRIMARY KEY)",
		"CREATE TABLE " + db.Prefix + "child (parent int REFERENCES " + db.Prefix + "parent DEFERRABLE INITIALLY DEFERRED)",
		"INSERT INTO " + db.Prefix + "parent VALUES (1)",
	} {
		if _, err := db.DB.ExecContext(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
	first, err := db.DB.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Rollback()
	if _, err := first.ExecContext(ctx, "SELECT * FROM "+db.Prefix+"parent FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	second, err := db.DB.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Rollback()
	var pid int
	if err := second.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if _, err := second.ExecContext(ctx, "INSERT INTO "+db.Prefix+"child VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	settled := make(chan error, 1)
	go func() {
		end, err := s.SettleIn(ctx, second, []bus.Token{ds[1].Token}, nil)
		if err == nil {
			err = second.Commit()
		}
		settled <- end(err)
	}()
	for waits := 0; waits == 0 && ctx.Err() == nil; { // until it waits for the row
		_ = db.DB.QueryRowContext(ctx, "SELECT COUNT(*) FROM pg_locks WHERE pid = $1 AND NOT granted", pid).Scan(&waits)
	}
	end, err := s.SettleIn(ctx, first, []bus.Token{ds[0].Token}, nil)
	if err == nil {
		err = first.Commit()
	}
	if err = end(err); err != nil {
		t.Errorf("the holder of the row waits for the lane of the waiter for the row: %v", err)
	}
	if err := <-settled; err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	sqltest.Close(t, s)
}

// TestIdleLimitOfTheCaller: a handler's transaction may stand still for ten seconds after it has
// settled, and no longer than its session allows anyway.
func TestIdleLimitOfTheCaller(t *testing.T) {
	db := database(t)
	b, in := db.Open(t, "shards=1"), sqltest.Topic()
	sqltest.Publish(t, b, in, sqltest.Texts("a", "b", "c", "d")...)
	source, err := b.Driver().Subscribe(t.Context(), bus.Subscription{Topic: in, Group: "g", InFlight: 10, Bytes: 1 << 20, Transactional: true}, sqltest.NewObserver())
	if err != nil {
		t.Fatal(err)
	}
	s := source.(driver.JoiningSource)
	ds := sqltest.Receive(t, s, 4)
	for i, c := range []struct{ set, want string }{{"0", "10s"}, {"10 min", "10s"}, {"3s", "3s"}, {"9999ms", "9999ms"}} {
		tx, err := db.DB.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(t.Context(), "SET LOCAL idle_in_transaction_session_timeout = '"+c.set+"'"); err != nil {
			t.Fatal(err)
		}
		end, err := s.SettleIn(t.Context(), tx, []bus.Token{ds[i].Token}, nil)
		if err != nil {
			t.Fatal(end(err))
		}
		var got string
		if err := tx.QueryRowContext(t.Context(), "SHOW idle_in_transaction_session_timeout").Scan(&got); err != nil || got != c.want {
			t.Errorf("of %s: the limit is %q, %v, want %s", c.set, got, err, c.want)
		}
		if err := end(tx.Commit()); err != nil {
			t.Error(err)
		}
	}
	sqltest.Close(t, s)
}
