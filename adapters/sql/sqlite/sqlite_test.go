package sqlite_test

import (
	"database/sql"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/sqlite"
)

func TestMain(m *testing.M) {
	if sqltest.Child() {
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// database returns a new file. Its name has what a URL must escape.
func database(t testing.TB) sqltest.Database {
	path := filepath.Join(t.TempDir(), "a b%?#.db")
	db, err := sql.Open("sqlite", "file:"+url.PathEscape(path)+"?_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return sqltest.Database{URL: "sqlite:" + url.PathEscape(path), Prefix: "millrace_", DB: db}
}

func TestFile(t *testing.T) { sqltest.Run(t, database(t)) }

func TestRetention(t *testing.T) { sqltest.Retention(t, database(t)) }

func TestVersions(t *testing.T) {
	script, err := sqlite.Migrations("")
	if err != nil {
		t.Fatal(err)
	}
	sqltest.Versions(t, database(t), script)
}
