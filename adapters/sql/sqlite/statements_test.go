package sqlite_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/sqlite"
	"github.com/millrace-go/millrace/bus"
)

// counter is a connector whose connections count what they run.
type counter struct {
	of   driver.Driver
	name string
	runs atomic.Int64
}

func (c *counter) Driver() driver.Driver { return c.of }

func (c *counter) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.of.Open(c.name)
	return countedConn{conn, c}, err
}

type countedConn struct {
	driver.Conn
	c *counter
}

func (c countedConn) Prepare(query string) (driver.Stmt, error) {
	stmt, err := c.Conn.Prepare(query)
	return countedStmt{stmt, c.c}, err
}

type countedStmt struct {
	driver.Stmt
	c *counter
}

func (s countedStmt) Exec(args []driver.Value) (driver.Result, error) {
	s.c.runs.Add(1)
	return s.Stmt.Exec(args) //nolint:staticcheck // the least that a statement can do
}

func (s countedStmt) Query(args []driver.Value) (driver.Rows, error) {
	s.c.runs.Add(1)
	return s.Stmt.Query(args) //nolint:staticcheck // as above
}

// TestStatements counts the statements of a call that publishes, and of a batch that is settled: one for 16 messages, and
// one for a lane.
func TestStatements(t *testing.T) {
	pool, err := sql.Open("sqlite", "")
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{of: pool.Driver(), name: "file:" + filepath.Join(t.TempDir(), "bus.db") + "?_txlock=immediate&_busy_timeout=5000&_pragma=journal_mode(WAL)"}
	pool.Close()
	db := sql.OpenDB(c)
	defer db.Close()
	const lanes = 4
	b, err := sqlite.New(t.Context(), db, sqlite.Config{Shards: lanes, Poll: time.Minute, Lease: 10 * time.Minute, Commit: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	least := func(do func()) (fewest int64) {
		fewest = 1 << 30
		for range 5 {
			before := c.runs.Load()
			do()
			fewest = min(fewest, c.runs.Load()-before)
		}
		return fewest
	}
	for n, want := range map[int]int64{1: 1, 16: 1, 160: 10, 100: 10} {
		if got := least(func() { sqltest.Publish(t, b, "t", sqltest.BenchMessages(n)...) }); got != want {
			t.Errorf("publishing %d: %d statements, want %d", n, got, want)
		}
	}
	o := sqltest.NewObserver()
	s := sqltest.Subscribe(t, b, "t", "g", bus.Earliest, o)
	defer sqltest.Close(t, s)
	o.Await(t, lanes)
	for _, n := range []int{10, 200} {
		got := least(func() {
			ds := sqltest.Receive(t, s, n)
			toks := make([]bus.Token, n)
			for i := range ds {
				toks[i] = ds[i].Token
			}
			if err := s.Settle(t.Context(), toks); err != nil {
				t.Fatal(err)
			}
			if err := s.(bus.Committer).Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
		if got > lanes+4 { // reading takes two
			t.Errorf("settling %d: %d statements", n, got)
		}
	}
}
