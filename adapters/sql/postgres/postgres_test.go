package postgres_test

import (
	"database/sql"
	"errors"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/postgres"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
)

func TestMain(m *testing.M) {
	if sqltest.Child(connect) {
		os.Exit(0)
	}
	goleak.VerifyTestMain(testlog.Strict(m))
}

// database returns a schema of the test's own, which goes when the test ends.
func database(t testing.TB) sqltest.Database {
	url, schema := brokertest.URL(t, "postgres"), brokertest.Schema(t)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	db := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() { db.Close() })
	return sqltest.Database{URL: brokertest.With(url, "schema="+schema), Prefix: schema + ".", DB: db, Connect: connect}
}

func connect(text string) (*sql.DB, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	q := u.Query()
	for _, ours := range []string{"schema", "lease"} {
		q.Del(ours)
	}
	u.RawQuery = q.Encode()
	return sql.Open("pgx", u.String())
}

func TestServer(t *testing.T)      { sqltest.Run(t, database(t)) }
func TestExactlyOnce(t *testing.T) { sqltest.ExactlyOnce(t, database(t), true) }

func TestCuts(t *testing.T)      { sqltest.Cuts(t, database(t)) }
func TestPartition(t *testing.T) { sqltest.Partition(t, database(t)) }
func TestRetention(t *testing.T) { sqltest.Retention(t, database(t)) }
func TestOlder(t *testing.T)     { sqltest.Older(t, database(t)) }
func TestLeaseLost(t *testing.T) { sqltest.LeaseLost(t, database(t)) }

func TestStandsStill(t *testing.T) { sqltest.StandsStill(t, database(t)) }
func TestParksOnce(t *testing.T)   { sqltest.ParksOnce(t, database(t)) }

func TestParksAsItsLaneGoes(t *testing.T) { sqltest.ParksAsItsLaneGoes(t, database(t)) }
func TestDenied(t *testing.T)             { sqltest.Denied(t, database(t)) }

func TestRoundTrips(t *testing.T)  { sqltest.RoundTrips(t, database(t), "listen=false") }
func TestAllocations(t *testing.T) { sqltest.Allocations(t, database(t), 1, 28, 5) }

func TestVersions(t *testing.T) {
	db := database(t)
	script, err := postgres.Migrations(db.Prefix[:len(db.Prefix)-1])
	if err != nil {
		t.Fatal(err)
	}
	sqltest.Versions(t, db, script)
}

// TestWithoutPreparedStatements runs as behind a PgBouncer.
func TestWithoutPreparedStatements(t *testing.T) {
	db := database(t)
	for _, mode := range []string{"exec", "simple_protocol", "describe_exec", "cache_describe"} {
		t.Run(mode, func(t *testing.T) { sqltest.Existing(t, db.Open(t, "listen=false", "default_query_exec_mode="+mode)) })
	}
}

func TestExistingPool(t *testing.T) {
	db := database(t)
	pool, err := pgxpool.New(t.Context(), brokertest.URL(t, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for range 2 { // a bus leaves the pool open
		b, err := postgres.New(t.Context(), pool, postgres.Config{Schema: db.Prefix[:len(db.Prefix)-1], Shards: 3})
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := bus.As[*pgxpool.Pool](b); !ok || got != pool {
			t.Error("As")
		}
		sqltest.Existing(t, b)
	}
	if err := pool.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestURLs(t *testing.T) {
	sqltest.URLs(t, map[string]string{
		"postgres:opaque": "want postgres://",
		"postgres://u:hunter2@localhost/x?sslmode=perhaps": "sslmode",
		"postgres://u:hunter2@localhost/x?schema=A":        "the first a letter",
		"postgres://u:hunter2@localhost/x?typo=1":          "is unknown",
		"postgresql://u:hunter2@127.0.0.1:1/x":             "connection refused",
	})
	for _, c := range []postgres.Config{{Shards: 257}, {Lease: 1}, {Poll: -1}, {Commit: time.Hour}, {Retention: -1}, {Schema: "x y"}} {
		if _, err := postgres.New(t.Context(), nil, c); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestDependencies(t *testing.T) {
	sqltest.Dependencies(t, "github.com/millrace-go/millrace/adapters/sql/postgres", "github.com/jackc/pgx/v5", "github.com/jackc/puddle/v2",
		"github.com/jackc/pgpassfile", "github.com/jackc/pgservicefile", "golang.org/x/text", "golang.org/x/sync")
}
