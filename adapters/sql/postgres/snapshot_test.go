package postgres_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// explained is a transaction of database/sql. It calls explain before each statement.
type explained struct {
	*sql.Tx
	explain func(tx *sql.Tx, query string, args []any)
}

func (e explained) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	e.explain(e.Tx, query, args)
	return e.Tx.ExecContext(ctx, query, args...)
}

func (e explained) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	e.explain(e.Tx, query, args)
	return e.Tx.QueryRowContext(ctx, query, args...)
}

// scanning is a transaction of another library that can read rows.
type scanning struct{ tx explained }

func (s scanning) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return s.tx.ExecContext(ctx, query, args...)
}

func (s scanning) ScanRow(ctx context.Context, query string, args []any, dest ...any) error {
	return s.tx.QueryRowContext(ctx, query, args...).Scan(dest...)
}

// executing is a transaction of a library that cannot read rows.
type executing struct{ driver.Execer }

// TestLongSnapshot: while somebody has a snapshot, the server keeps every version of a lane's row.
// A settlement must not visit them all, and must find the row wherever it is.
func TestLongSnapshot(t *testing.T) {
	t.Run("database/sql", func(t *testing.T) {
		settleBesideSnapshot(t, func(tx explained) driver.Execer { return tx })
	})
	t.Run("another library", func(t *testing.T) {
		settleBesideSnapshot(t, func(tx explained) driver.Execer { return scanning{tx} })
	})
}

func settleBesideSnapshot(t *testing.T, as func(explained) driver.Execer) {
	const before, atOnce = 2000, 500
	db := database(t)
	b, in, ctx := db.Open(t, "shards=1", "lease=10m"), sqltest.Topic(), t.Context()
	sqltest.Publish(t, b, in, sqltest.BenchMessages(before+4)...)
	source, err := b.Driver().Subscribe(ctx, bus.Subscription{Topic: in, Group: "g", InFlight: atOnce, Bytes: 1 << 20, Transactional: true}, sqltest.NewObserver())
	if err != nil {
		t.Fatal(err)
	}
	s := source.(driver.JoiningSource)
	lane := db.Prefix + "lane"
	if _, err := db.DB.ExecContext(ctx, "VACUUM "+lane); err != nil { // from now on it has one page, and plans are made for that
		t.Fatal(err)
	}
	snapshot, err := db.DB.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Rollback()
	if _, err := snapshot.ExecContext(ctx, "SELECT * FROM "+lane); err != nil {
		t.Fatal(err)
	}
	scans := func(tx *sql.Tx) (n int) { // so far, in this session
		t.Helper()
		if err := tx.QueryRowContext(ctx, "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relid = CAST($1 AS regclass)", lane).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	settle := func(d bus.Delivery, as func(explained) driver.Execer, explain func(tx *sql.Tx, query string, args []any)) (scanned bool) {
		t.Helper()
		tx, err := db.DB.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, "SET LOCAL synchronous_commit = off"); err != nil {
			t.Fatal(err)
		}
		earlier := scans(tx)
		end, err := s.SettleIn(ctx, as(explained{tx, explain}), []bus.Token{d.Token}, nil)
		if err == nil {
			scanned = scans(tx) > earlier
			err = tx.Commit()
		}
		if err = end(err); err != nil {
			t.Fatal(err)
		}
		return scanned
	}
	nothing := func(*sql.Tx, string, []any) {}
	for range before / atOnce {
		for _, d := range sqltest.Receive(t, s, atOnce) {
			settle(d, as, nothing)
		}
	}
	last, pages := sqltest.Receive(t, s, 4), 0
	settle(last[0], as, func(tx *sql.Tx, query string, args []any) {
		if strings.Contains(query, lane) {
			pages += pagesOf(t, tx, query, args)
		}
	})
	if pages == 0 || pages > 10 {
		t.Errorf("after %d settlements, the next one touches %d pages", before, pages)
	}
	if settle(last[1], as, nothing) {
		t.Error("the plan of the settlement, which the connection keeps, reads the whole table")
	}
	if _, err := db.DB.ExecContext(ctx, "UPDATE "+lane+" SET pos = pos"); err != nil { // the row moves
		t.Fatal(err)
	}
	settle(last[2], as, nothing)
	settle(last[3], func(tx explained) driver.Execer { return executing{tx} }, nothing)
	sqltest.Close(t, s)
}

// pagesOf returns how many pages a statement touches, and undoes it.
func pagesOf(t *testing.T, tx *sql.Tx, query string, args []any) int {
	t.Helper()
	var text string
	_, err := tx.ExecContext(t.Context(), "SAVEPOINT explained")
	if err == nil {
		err = tx.QueryRowContext(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+query, args...).Scan(&text)
	}
	if err == nil {
		_, err = tx.ExecContext(t.Context(), "ROLLBACK TO SAVEPOINT explained")
	}
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &plans)
	}
	if err != nil {
		t.Fatal(err)
	}
	return plans[0].Plan.Hit + plans[0].Plan.Read
}
