package aggregate_test

import (
	"database/sql"
	"errors"
	"net/url"
	"path/filepath"
	"sync"
	"testing"

	_ "github.com/millrace-go/millrace/adapters/sql/mysql"
	_ "github.com/millrace-go/millrace/adapters/sql/postgres"
	_ "github.com/millrace-go/millrace/adapters/sql/sqlite"
	"github.com/millrace-go/millrace/aggregate"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/account"
	"github.com/millrace-go/millrace/internal/brokertest"
)

func TestSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "accounts.db")
	onDatabase(t, "sqlite://"+path, "sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?_txlock=immediate&_busy_timeout=30000&_pragma=journal_mode(WAL)")
}

func TestPostgres(t *testing.T) {
	onDatabase(t, brokertest.Postgres(t), "pgx", brokertest.URL(t, "postgres"))
}

func TestMySQL(t *testing.T) {
	onDatabase(t, brokertest.MySQL(t), "mysql", brokertest.MySQLDSN(brokertest.URL(t, "mysql")))
}

// onDatabase has two processes execute commands on one account, with snapshots, beside commands in
// transactions of their own.
func onDatabase(t *testing.T, busURL, driver, dsn string) {
	ctx := t.Context()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var repositories []*account.Repository
	for range 2 {
		b, err := bus.Open(ctx, busURL)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		s, err := eventstore.Open(ctx, b, "accounts")
		if err != nil {
			t.Fatal(err)
		}
		repositories = append(repositories, account.Define(aggregate.Cached(10), aggregate.Snapshots(10, 1)).In(s))
	}
	inTx := func(end func(*sql.Tx) error, at int64, d ...account.Decision) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		r := repositories[0].In(tx)
		if at < 0 {
			_, err = r.Do(ctx, "7", d...)
		} else {
			_, err = r.DoAt(ctx, "7", at, d...)
		}
		if err != nil {
			return err
		}
		return end(tx)
	}
	if err := inTx((*sql.Tx).Commit, 0, account.Deposit(60), account.Deposit(50), account.Withdraw(10)); err != nil {
		t.Fatal(err)
	}
	account.Check(t, repositories[1], 100, 3)
	if err := inTx((*sql.Tx).Rollback, -1, account.Withdraw(50)); err != nil {
		t.Fatal(err)
	}
	if err := inTx((*sql.Tx).Commit, -1, account.Withdraw(101)); !errors.Is(err, account.ErrTooMuch) {
		t.Errorf("refused: %v", err)
	}
	err = inTx((*sql.Tx).Commit, 2, account.Withdraw(1))
	if c, ok := errors.AsType[*eventstore.Conflict](err); !ok || c.Actual != 3 {
		t.Errorf("at an old version: %v", err)
	}
	account.Check(t, repositories[0], 100, 3)

	var wg sync.WaitGroup
	for i := range 120 {
		wg.Go(func() {
			for {
				var err error
				if i%10 == 0 {
					err = inTx((*sql.Tx).Commit, -1, account.Withdraw(1))
				} else {
					_, err = repositories[i%2].Do(ctx, "7", account.Withdraw(1))
				}
				if _, ok := errors.AsType[*eventstore.Conflict](err); ok {
					continue
				}
				if e, ok := errors.AsType[*bus.Error](err); ok && e.Retryable { // a deadlock, say
					continue
				}
				if err != nil && !errors.Is(err, account.ErrTooMuch) {
					t.Error(err)
				}
				return
			}
		})
	}
	wg.Wait()
	account.Check(t, repositories[0], 0, 103)
	account.Check(t, repositories[1], 0, 103)
}
