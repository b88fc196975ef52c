package postgres_test

import (
	"context"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/postgres"
	"github.com/millrace-go/millrace/bus"
)

func TestMain(m *testing.M) {
	if sqltest.Child() {
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// database returns a schema of the test's own, which goes when the test ends.
func database(t testing.TB) sqltest.Database {
	url := sqltest.ServerURL(t, "MILLRACE_POSTGRES_URL")
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	schema := "t" + bus.NewID()[24:]
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "DROP SCHEMA IF EXISTS "+schema+" CASCADE"); err != nil {
			t.Error(err)
		}
		pool.Close()
	})
	db := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() { db.Close() })
	return sqltest.Database{URL: sqltest.With(url, "schema="+schema), Prefix: schema + ".", DB: db}
}

func TestServer(t *testing.T)    { sqltest.Run(t, database(t)) }
func TestCuts(t *testing.T)      { sqltest.Cuts(t, database(t)) }
func TestPartition(t *testing.T) { sqltest.Partition(t, database(t)) }
func TestRetention(t *testing.T) { sqltest.Retention(t, database(t)) }

func TestVersions(t *testing.T) {
	db := database(t)
	script, err := postgres.Migrations(db.Prefix[:len(db.Prefix)-1])
	if err != nil {
		t.Fatal(err)
	}
	sqltest.Versions(t, db, script)
}
