package sqlite_test

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/sqlite"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// counter is a connector whose connections count the statements they run.
type counter struct {
	of   sqldriver.Driver
	name string
	runs atomic.Int64
	// passed counts the rows that reads of messages passed over, wanted or not.
	passed atomic.Int64
	// rows is how many rows of messages may still be read before a read fails; 0: none fails.
	rows atomic.Int64
}

// pool opens a pool on a new file, and the counter of its connections.
func pool(t *testing.T) (*sql.DB, *counter) {
	t.Helper()
	first, err := sql.Open("sqlite", "")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	c := &counter{of: first.Driver(), name: "file:" + filepath.Join(t.TempDir(), "bus.db") + "?_txlock=immediate&_busy_timeout=5000&_pragma=journal_mode(WAL)"}
	db := sql.OpenDB(c)
	t.Cleanup(func() { db.Close() })
	return db, c
}

func (c *counter) Driver() sqldriver.Driver { return c.of }

func (c *counter) Connect(context.Context) (sqldriver.Conn, error) {
	conn, err := c.of.Open(c.name)
	return countedConn{conn, c}, err
}

type countedConn struct {
	sqldriver.Conn
	c *counter
}

func (c countedConn) Prepare(query string) (sqldriver.Stmt, error) {
	stmt, err := c.Conn.Prepare(query)
	return countedStmt{stmt, c.c, strings.Contains(query, "seq >= ? AND seq <= ?")}, err
}

type countedStmt struct {
	sqldriver.Stmt
	c     *counter
	reads bool
}

func (s countedStmt) Exec(args []sqldriver.Value) (sqldriver.Result, error) {
	s.c.runs.Add(1)
	return s.Stmt.Exec(args) //nolint:staticcheck // the least that a statement can do
}

func (s countedStmt) Query(args []sqldriver.Value) (sqldriver.Rows, error) {
	s.c.runs.Add(1)
	rows, err := s.Stmt.Query(args) //nolint:staticcheck // as above
	if s.reads {
		s.c.passed.Add(args[1].(int64) - args[0].(int64) + 1)
		rows = failingRows{rows, s.c}
	}
	return rows, err
}

type failingRows struct {
	sqldriver.Rows
	c *counter
}

func (r failingRows) Next(row []sqldriver.Value) error {
	if r.c.rows.Load() > 0 && r.c.rows.Add(-1) == 0 {
		return errors.New("the disk is broken")
	}
	return r.Rows.Next(row)
}

// TestStatements counts the statements of a call that publishes, and of a batch that is settled:
// one for 16 messages, and one for a lane.
func TestStatements(t *testing.T) {
	db, c := pool(t)
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
			if err := s.(driver.Committer).Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
		if got > lanes+4 { // reading takes two
			t.Errorf("settling %d: %d statements", n, got)
		}
	}
}

// TestPassedOnce counts the rows that reads pass over. No read comes back to the rows of other
// members. Each member passes over a row once, also where its own lanes never have a message. A
// lane's new owner goes on where the owner before stopped.
func TestPassedOnce(t *testing.T) {
	db, c := pool(t)
	b, err := sqlite.New(t.Context(), db, sqlite.Config{Shards: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	first, second := sqltest.NewObserver(), sqltest.NewObserver()
	sources := []bus.Source{sqltest.Subscribe(t, b, "t", "g", bus.Earliest, first), sqltest.Subscribe(t, b, "t", "g", bus.Earliest, second)}
	first.Await(t, 1)
	second.Await(t, 1)
	ctx, stop := context.WithCancel(t.Context())
	var members sync.WaitGroup
	settled := make(chan struct{})
	for _, s := range sources {
		members.Go(func() {
			var ds [1]bus.Delivery
			for {
				if _, err := s.Receive(ctx, ds[:], 1<<20); err != nil {
					return
				}
				sqltest.Settle(t, s, ds[0])
				settled <- struct{}{}
			}
		})
	}
	const n = 200
	for range n { // all with one key, so that one of the two lanes stays empty
		sqltest.Publish(t, b, "t", sqltest.Texts("key")...)
		<-settled
	}
	stop()
	members.Wait()
	if got := c.passed.Load(); got > 2*(n+1) { // positions begin at 1, and cursors at 0
		t.Errorf("two members passed over %d rows, and there are %d", got, n)
	}
	for _, s := range sources {
		sqltest.Close(t, s)
	}
	before := c.passed.Load()
	s := sqltest.Subscribe(t, b, "t", "g", bus.Earliest, sqltest.NewObserver())
	defer sqltest.Close(t, s)
	sqltest.Nothing(t, b, "t", s)
	if got := c.passed.Load() - before; got > 1 {
		t.Errorf("the next owner passed over %d rows for one message", got)
	}
}

// TestBrokenRead has a read fail in the middle: all is read again, and nothing is given twice.
func TestBrokenRead(t *testing.T) {
	db, c := pool(t)
	b, err := sqlite.New(t.Context(), db, sqlite.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	texts := []string{"a", "b", "c", "d", "e", "f"}
	sqltest.Publish(t, b, "t", sqltest.Texts(texts...)...)
	c.rows.Store(4)
	s := sqltest.Subscribe(t, b, "t", "g", bus.Earliest, sqltest.NewObserver())
	defer sqltest.Close(t, s)
	ds := sqltest.Receive(t, s, len(texts))
	if got := sqltest.Payloads(ds); !slices.Equal(got, texts) || c.rows.Load() != 0 {
		t.Errorf("got %v, and %d rows before the failure were left", got, c.rows.Load())
	}
	sqltest.Settle(t, s, ds...)
	sqltest.Nothing(t, b, "t", s)
}
