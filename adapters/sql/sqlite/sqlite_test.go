package sqlite_test

import (
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/sqlite"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/testlog"
)

func TestMain(m *testing.M) {
	if sqltest.Child(connect) {
		os.Exit(0)
	}
	goleak.VerifyTestMain(testlog.Strict(m))
}

// database returns a new file. Its name has characters that a URL must escape.
func database(t testing.TB) sqltest.Database {
	path := filepath.Join(t.TempDir(), "a b%?#.db")
	db, err := sql.Open("sqlite", "file:"+url.PathEscape(path)+"?_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return sqltest.Database{URL: "sqlite:" + url.PathEscape(path), Prefix: "millrace_", DB: db, Connect: connect}
}

func connect(text string) (*sql.DB, error) {
	path, _, _ := strings.Cut(strings.TrimPrefix(text, "sqlite:"), "?")
	return sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_busy_timeout=20000")
}

func TestFile(t *testing.T) { sqltest.Run(t, database(t)) }

func TestAllocations(t *testing.T) { sqltest.Allocations(t, database(t), 12, 45, 36) }

func TestExactlyOnce(t *testing.T) { sqltest.ExactlyOnce(t, database(t), false) }

func TestRetention(t *testing.T) { sqltest.Retention(t, database(t)) }

func TestOlder(t *testing.T) { sqltest.Older(t, database(t)) }

func TestLeaseLost(t *testing.T) { sqltest.LeaseLost(t, database(t)) }

func TestVersions(t *testing.T) {
	script, err := sqlite.Migrations("")
	if err != nil {
		t.Fatal(err)
	}
	sqltest.Versions(t, database(t), script)
}

func TestMemory(t *testing.T) {
	b, err := sqlite.Open(t.Context(), ":memory:", sqlite.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if c := b.Driver().Capabilities(); c.Durable || !c.Replay || !c.StartAt {
		t.Errorf("%+v", c)
	}
	sqltest.Existing(t, b)
	b, err = bus.Open(t.Context(), "sqlite::memory:")
	if err != nil {
		t.Fatal(err)
	}
	sqltest.Existing(t, b)
}

func TestExistingPool(t *testing.T) {
	db, err := sql.Open("sqlite", filepath.Join(t.TempDir(), "own.db")+"?_txlock=immediate&_busy_timeout=5000&_journal_mode=WAL")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for range 2 { // a bus leaves the pool open
		b, err := sqlite.New(t.Context(), db, sqlite.Config{Prefix: "own_", Shards: 3})
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := bus.As[*sql.DB](b); !ok || got != db {
			t.Error("As")
		}
		if !b.Driver().Capabilities().Durable {
			t.Error("a file is durable")
		}
		sqltest.Existing(t, b)
	}
}

func TestURLs(t *testing.T) {
	sqltest.URLs(t, map[string]string{
		"sqlite:":                          "want sqlite:orders.db",
		"sqlite://orders.db":               "want sqlite:orders.db",
		"sqlite:x.db?synchronous=off":      "want one of full, normal",
		"sqlite:x.db?prefix=a;":            "separated by ;",
		"sqlite:x.db?prefix=A-":            "the first a letter",
		"sqlite:x.db?shards=0":             "between 1 and 256",
		"sqlite:x.db?lease=1ms":            "between 500ms and 10m0s",
		"sqlite:x.db?typo=1":               "is unknown",
		"sqlite:/no/such/folder/orders.db": "unable to open database file",
	})
	for _, c := range []sqlite.Config{{Shards: 257}, {Lease: 1}, {Poll: -1}, {Commit: time.Hour}, {Retention: -1}, {Prefix: "x y"}, {Synchronous: "off"}} {
		if _, err := sqlite.Open(t.Context(), ":memory:", c); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestDependencies(t *testing.T) {
	sqltest.Dependencies(t, "github.com/millrace-go/millrace/adapters/sql/sqlite", "modernc.org/sqlite", "modernc.org/libc", "modernc.org/mathutil",
		"modernc.org/memory", "github.com/dustin/go-humanize", "github.com/google/uuid", "github.com/mattn/go-isatty", "github.com/ncruces/go-strftime",
		"github.com/remyoudompheng/bigfft", "golang.org/x/sys")
}
