package mysql_test

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/mysql"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
)

// TestWithoutAutocommit: sessions in which nothing is committed by itself are made right, or
// refused if they are the caller's.
func TestWithoutAutocommit(t *testing.T) {
	db := database(t)
	c, err := driver.ParseDSN(brokertest.MySQLDSN(brokertest.URL(t, "mysql")))
	if err != nil {
		t.Fatal(err)
	}
	c.Params = map[string]string{"autocommit": "0"}
	b, err := mysql.Open(t.Context(), c, mysql.Config{Prefix: db.Prefix})
	if err != nil {
		t.Fatal(err)
	}
	topic := sqltest.Topic()
	sqltest.Publish(t, b, topic, sqltest.Texts("a")...)
	other := db.Open(t)
	s := sqltest.Subscribe(t, other, topic, "g", bus.Earliest, sqltest.NewObserver())
	sqltest.Receive(t, s, 1)
	sqltest.Close(t, s)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	connector, err := driver.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	pool := sql.OpenDB(connector)
	defer pool.Close()
	if _, err := mysql.New(t.Context(), pool, mysql.Config{Prefix: db.Prefix}); !errors.Is(err, bus.ErrInvalid) {
		t.Errorf("a pool without autocommit: %v", err)
	}
}

// TestSessions: the server ends a session that stands still in a transaction, and a wait for a
// lock.
func TestSessions(t *testing.T) {
	pool, ok := bus.As[*sql.DB](database(t).Open(t))
	if !ok {
		t.Fatal("As")
	}
	var idle, lock int
	if err := pool.QueryRowContext(t.Context(), "SELECT @@wait_timeout, @@innodb_lock_wait_timeout").Scan(&idle, &lock); err != nil {
		t.Fatal(err)
	}
	if idle > 10 || lock > 10 {
		t.Errorf("%d s for a session that stands still, %d s for a lock", idle, lock)
	}
}

// TestFullPool: handlers that hold all connections of the pool do not cost their process its lanes.
func TestFullPool(t *testing.T) {
	const lease = 600 * time.Millisecond
	b := database(t).Open(t, "max_conns=2", "lease=600ms")
	pool, ok := bus.As[*sql.DB](b)
	if !ok {
		t.Fatal("As")
	}
	o := sqltest.NewObserver()
	s := sqltest.Subscribe(t, b, sqltest.Topic(), "g", bus.Earliest, o)
	o.Await(t, 16)
	var held []*sql.Conn
	for range 2 {
		c, err := pool.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	sqltest.Keeps(t, o, lease, 0)
	for _, c := range held {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	sqltest.Close(t, s)
}
