package eventstore_test

import (
	"bytes"
	"context"
	"database/sql"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	_ "github.com/millrace-go/millrace/adapters/sql/mysql"
	_ "github.com/millrace-go/millrace/adapters/sql/postgres"
	_ "github.com/millrace-go/millrace/adapters/sql/sqlite"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/faults"
	"github.com/millrace-go/millrace/internal/storetest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/outbox/pgxoutbox"
)

// tortureLasts is how long writers write in a torture.
const tortureLasts = 5 * time.Second

func sqlitePlace(t *testing.T) storetest.Place {
	t.Helper()
	path := filepath.Join(t.TempDir(), "events.db")
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?_txlock=immediate&_busy_timeout=30000&_pragma=journal_mode(WAL)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return storetest.Place{
		Open: func(t testing.TB) *bus.Bus { return openURL(t, "sqlite://"+path) }, DB: db, Serial: true,
		Sleep: "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT MAX(i) FROM n",
	}
}

func openURL(t testing.TB, url string) *bus.Bus {
	t.Helper()
	b, err := bus.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func postgresPlace(t *testing.T) storetest.Place {
	t.Helper()
	url := brokertest.Postgres(t)
	return storetest.Place{
		Open:  func(t testing.TB) *bus.Bus { return openURL(t, url) },
		DB:    openDB(t, "pgx", brokertest.URL(t, "postgres")),
		Sleep: "SELECT pg_sleep(0.2)",
	}
}

func mysqlPlace(t *testing.T) storetest.Place {
	t.Helper()
	url := brokertest.MySQL(t)
	return storetest.Place{
		Open: func(t testing.TB) *bus.Bus { return openURL(t, url) },
		DB:   openDB(t, "mysql", brokertest.MySQLDSN(brokertest.URL(t, "mysql"))), Serial: true, Sleep: "DO SLEEP(0.2)",
	}
}

func openDB(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxIdleConns(16)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestSQLite(t *testing.T)   { storetest.Run(t, sqlitePlace(t)) }
func TestPostgres(t *testing.T) { storetest.Run(t, postgresPlace(t)) }
func TestMySQL(t *testing.T)    { storetest.Run(t, mysqlPlace(t)) }

func TestSQLiteTorture(t *testing.T)   { storetest.Torture(t, sqlitePlace(t), tortureLasts) }
func TestPostgresTorture(t *testing.T) { storetest.Torture(t, postgresPlace(t), tortureLasts) }
func TestMySQLTorture(t *testing.T)    { storetest.Torture(t, mysqlPlace(t), tortureLasts) }

func TestMain(m *testing.M) {
	storetest.Writer()
	os.Exit(testlog.Strict(m).Run())
}

func TestSQLiteKilled(t *testing.T) {
	url := "sqlite://" + filepath.Join(t.TempDir(), "events.db")
	storetest.KilledWriters(t, url, openURL(t, url))
}

func TestPostgresKilled(t *testing.T) {
	url := brokertest.Postgres(t)
	storetest.KilledWriters(t, url, openURL(t, url))
}

func TestMySQLKilled(t *testing.T) {
	url := brokertest.MySQL(t)
	storetest.KilledWriters(t, url, openURL(t, url))
}

// behind returns a URL that leads through a proxy.
func behind(t *testing.T, rawURL string) (string, *faults.Proxy) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	p := faults.NewProxy(t, u.Host)
	u.Host = p.Address()
	return u.String(), p
}

func TestPostgresLostAnswer(t *testing.T) {
	url, proxy := behind(t, brokertest.Postgres(t))
	storetest.LostAnswer(t, openURL(t, url), func(id string) {
		proxy.CutAnswer(func(request []byte) bool { return bytes.Contains(request, []byte(id)) })
	})
}

func TestMySQLLostAnswer(t *testing.T) {
	url, proxy := behind(t, brokertest.MySQL(t))
	commit := []byte("\x03COMMIT") // a command with this text
	storetest.LostAnswer(t, openURL(t, url), func(string) { proxy.CutAnswer(func(request []byte) bool { return bytes.Contains(request, commit) }) })
}

// TestPostgresStandsStill: a user's transaction that has appended gets a limit for standing still,
// unless it has one.
func TestPostgresStandsStill(t *testing.T) {
	p := postgresPlace(t)
	s, err := eventstore.Open(t.Context(), p.Open(t), "events")
	if err != nil {
		t.Fatal(err)
	}
	for set, want := range map[string]string{
		"SELECT 1": "1min",
		"SET LOCAL idle_in_transaction_session_timeout = '5s'":     "5s",
		"SET LOCAL idle_in_transaction_session_timeout = '10 min'": "10min",
	} {
		tx, err := p.DB.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.ExecContext(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		if _, err := s.In(tx).Append(t.Context(), "a", eventstore.New, &bus.Message{Type: "test"}); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := tx.QueryRowContext(t.Context(), "SHOW idle_in_transaction_session_timeout").Scan(&got); err != nil || got != want {
			t.Errorf("%s: the limit is %q, %v, want %q", set, got, err, want)
		}
		_ = tx.Rollback()
	}
}

// TestPostgresWithoutListen: a bus that hears of nothing has stores, too.
func TestPostgresWithoutListen(t *testing.T) {
	b := openURL(t, brokertest.With(brokertest.Postgres(t), "listen=false"))
	s, err := eventstore.Open(t.Context(), b, "events")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(t.Context(), s.Topic(), struct{}{}, bus.WithKey("a")); err != nil {
		t.Fatal(err)
	}
	for e, err := range s.Follow(t.Context(), 0) {
		if err != nil || e.Stream != "a" {
			t.Errorf("%v, %v", e, err)
		}
		break
	}
}

// TestPostgresNative: an append is part of a transaction of pgx.
func TestPostgresNative(t *testing.T) {
	ctx, b := t.Context(), openURL(t, brokertest.Postgres(t))
	pool, ok := bus.As[*pgxpool.Pool](b)
	if !ok {
		t.Fatal("no pool")
	}
	s, err := eventstore.Open(ctx, b, "events")
	if err != nil {
		t.Fatal(err)
	}
	for i, end := range []func(pgx.Tx, context.Context) error{pgx.Tx.Rollback, pgx.Tx.Commit} {
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		version, err := s.In(pgxoutbox.Tx(tx)).Append(ctx, "a", eventstore.New, &bus.Message{Type: "test", Payload: []byte("{}")}, &bus.Message{Type: "test"})
		if err != nil || version != 2 {
			t.Errorf("appended to version %d, %v", version, err)
		}
		if err := end(tx, ctx); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, err := range s.Read(ctx, "a", 0) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != 2*i {
			t.Errorf("%d events after transaction %d", n, i)
		}
	}
}

func BenchmarkSQLite(b *testing.B) {
	storetest.Bench(b, openURL(b, "sqlite://"+filepath.Join(b.TempDir(), "events.db")))
}
