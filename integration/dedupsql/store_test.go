package dedupsql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/middleware/dedupsql"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testlog.Strict(m)) }

func TestPostgres(t *testing.T) {
	testStore(t, dedupsql.Postgres, open(t, "pgx", brokertest.URL(t, "postgres")))
}

func TestMySQL(t *testing.T) {
	testStore(t, dedupsql.MySQL, open(t, "mysql", brokertest.MySQLDSN(brokertest.URL(t, "mysql"))))
}

func TestSQLite(t *testing.T) {
	testStore(t, dedupsql.SQLite, open(t, "sqlite", "file:"+filepath.Join(t.TempDir(), "dedup.db")+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)"))
}

func open(t *testing.T, driver, dsn string) *sql.DB {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func testStore(t *testing.T, d dedupsql.Dialect, db *sql.DB) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	table := "dedup_" + bus.NewID()[24:]
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP TABLE "+table); err != nil {
			t.Error(err)
		}
	})
	newStore := func(ttl time.Duration) *dedupsql.Store {
		s, err := dedupsql.New(db, dedupsql.Config{Dialect: d, Table: table, TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := newStore(0)
	if _, err := s.Seen(ctx, "g", []string{"1"}); err == nil {
		t.Error("there is no table yet")
	}
	for range 2 {
		if err := s.CreateTable(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(strings.Join(s.Schema(), ";"), table) {
		t.Error(s.Schema())
	}
	seen := func(group string, ids ...string) []bool {
		t.Helper()
		got, err := s.Seen(ctx, group, ids)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	long := strings.Repeat("x", 300)
	odd := []string{"a", "a ", "A", "\x00\xff", "", long, long + "y", "ä", "quote'\"\\"}
	for i, id := range odd { // none is taken for another
		if seen("g", id)[0] {
			t.Errorf("%.10q is taken for one of %.10q", id, odd[:i])
		}
		if err := s.Remember(ctx, "g", []string{id, id}); err != nil {
			t.Fatal(err)
		}
		if !seen("g", id)[0] || seen("other", id)[0] {
			t.Errorf("%.10q", id)
		}
	}
	if err := errors.Join(s.Remember(ctx, "g", odd), s.Remember(ctx, "g", nil)); err != nil {
		t.Error(err)
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = fmt.Sprint("many", i)
	}
	if err := s.Remember(ctx, "g", many[:999]); err != nil {
		t.Fatal(err)
	}
	if got := seen("g", many...); slices.Index(got, false) != 999 {
		t.Errorf("the first that is not remembered is %d, want 999", slices.Index(got, false))
	}

	// Many processes remember the same ids at once, in any order.
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			ids := slices.Clone(many)
			if w%2 == 0 {
				slices.Reverse(ids)
			}
			for some := range slices.Chunk(ids, 100) {
				if err := s.Remember(ctx, "shared", some); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()

	// An expired entry is not seen, and is swept; Remember renews.
	if _, err := db.ExecContext(ctx, "UPDATE "+table+" SET until = 1"); err != nil {
		t.Fatal(err)
	}
	if seen("g", "a")[0] {
		t.Error("its time is over")
	}
	if err := s.Remember(ctx, "g", []string{"a"}); err != nil || !seen("g", "a")[0] {
		t.Errorf("not renewed: %v", err)
	}
	if n, err := s.Sweep(ctx); err != nil || n != int64(len(odd)-1+999+1000) {
		t.Errorf("%d swept, %v", n, err)
	}
	if !seen("g", "a")[0] {
		t.Error("it was swept too early")
	}

	// Two processes: one handles a message that the other has handled already.
	b := bustest.New(t)
	calls := 0
	for range 2 {
		mw := middleware.Deduplicate(newStore(time.Hour), nil)
		m := &bus.Message{ID: "m"}
		h := engine.New(ctx, b, bus.Delivery{Message: m, Group: "g"})
		err := mw(bus.HandlerFunc(func(context.Context, *bus.Message) error { calls++; return nil })).Handle(h, m)
		if err := errors.Join(err, engine.Flush(ctx, h, nil)); err != nil {
			t.Error(err)
		}
	}
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
	ended, end := context.WithCancel(ctx)
	end()
	_, seenErr := s.Seen(ended, "g", []string{"a"})
	_, sweepErr := s.Sweep(ended)
	if seenErr == nil || sweepErr == nil || s.Remember(ended, "g", []string{"a"}) == nil {
		t.Error("errors are hidden")
	}
}

func TestBadConfig(t *testing.T) {
	_, err := dedupsql.New(nil, dedupsql.Config{Dialect: "oracle", Table: "a; b", TTL: -1})
	for _, want := range []string{"the database is nil", `dialect is "oracle": want "postgres"`, `table is "a; b"`, "TTL is -1ns"} {
		if !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func Example() {
	db, err := sql.Open("sqlite", ":memory:") // the service's own pool
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // each connection to :memory: has a database of its own
	ctx := context.Background()
	store, err := dedupsql.New(db, dedupsql.Config{Dialect: dedupsql.SQLite, TTL: 7 * 24 * time.Hour})
	if err != nil {
		log.Fatal(err)
	}
	if err := store.CreateTable(ctx); err != nil {
		log.Fatal(err)
	}
	once := middleware.Deduplicate(store, nil) // router.Use(once)
	_ = once
	// A background task, router.Go for example, sweeps now and then.
	removed, err := store.Sweep(ctx)
	fmt.Println(removed, err)
	// Output: 0 <nil>
}
