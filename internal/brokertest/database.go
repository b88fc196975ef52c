package brokertest

import (
	"context"
	"database/sql"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Postgres returns the URL of PostgreSQL with a schema of the test's own.
func Postgres(tb testing.TB) string {
	tb.Helper()
	return With(URL(tb, "postgres"), "schema="+Schema(tb))
}

// Schema returns the name of a schema in PostgreSQL. The schema is dropped after the test, if it
// exists.
func Schema(tb testing.TB) string {
	tb.Helper()
	server, schema := URL(tb, "postgres"), unique()
	cleanUp(tb, "pgx", server, func(ctx context.Context, db *sql.DB) error {
		_, err := db.ExecContext(ctx, "DROP SCHEMA IF EXISTS "+schema+" CASCADE")
		return err
	})
	return schema
}

// MySQL returns the URL of MySQL with tables of the test's own.
func MySQL(tb testing.TB) string {
	tb.Helper()
	return With(URL(tb, "mysql"), "prefix="+Prefix(tb))
}

// Prefix returns a prefix for the names of tables in MySQL. These tables are dropped after the
// test.
func Prefix(tb testing.TB) string {
	tb.Helper()
	server := URL(tb, "mysql")
	prefix := unique() + "_"
	cleanUp(tb, "mysql", MySQLDSN(server), func(ctx context.Context, db *sql.DB) error { return dropTables(ctx, db, prefix) })
	return prefix
}

// MySQLDSN returns the client library's form of a URL, user:password@tcp(host:port)/database, to
// which With adds parameters. It returns an invalid URL unchanged, so that the library reports it.
func MySQLDSN(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return rawURL
	}
	user := u.User.Username()
	if password, ok := u.User.Password(); ok {
		user += ":" + password
	}
	return user + "@tcp(" + u.Host + ")/" + url.PathEscape(strings.TrimPrefix(u.Path, "/"))
}

func unique() string { return "t" + bus.NewID()[24:] }

func dropTables(ctx context.Context, db *sql.DB, prefix string) error {
	var tables sql.NullString
	err := db.QueryRowContext(ctx, "SELECT GROUP_CONCAT(table_name) FROM information_schema.tables WHERE table_schema = DATABASE() AND LEFT(table_name, CHAR_LENGTH(?)) = ?", prefix, prefix).Scan(&tables)
	if err != nil || !tables.Valid {
		return err
	}
	_, err = db.ExecContext(ctx, "DROP TABLE "+tables.String)
	return err
}

// cleanUp calls clean with the database after the test.
func cleanUp(tb testing.TB, driver, dsn string, clean func(context.Context, *sql.DB) error) {
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		db, err := sql.Open(driver, dsn)
		if err != nil {
			tb.Errorf("clean up: %v", err)
			return
		}
		defer db.Close()
		if err := clean(ctx, db); err != nil {
			tb.Errorf("clean up: %v", err)
		}
	})
}
