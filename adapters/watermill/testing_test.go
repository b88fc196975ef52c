package watermill_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mysqldriver "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // database/sql's driver "pgx"
	"go.uber.org/goleak"

	_ "github.com/millrace-go/millrace/adapters/all"
	"github.com/millrace-go/millrace/bus"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // Watermill's suite tells much
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick")) // sarama's; it never ends
}

// server is a broker's URL from the environment.
func server(t *testing.T, variable string) string {
	t.Helper()
	url := os.Getenv(variable)
	switch {
	case testing.Short():
		t.Skip("short")
	case url == "" && os.Getenv("MILLRACE_REQUIRE_BROKERS") == "1":
		t.Fatalf("%s is not set", variable)
	case url == "":
		t.Skipf("%s is not set: run make brokers and . .brokers/env", variable)
	}
	return url
}

// natives are the URLs of Millrace's own drivers, each with a place of its own, which is cleaned up.
var natives = []struct {
	name string
	url  func(t *testing.T) string
}{
	{"memory", func(*testing.T) string { return "memory:" + bus.NewID() }},
	{"sqlite", func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "bus.db") }},
	{"kafka", func(t *testing.T) string { return server(t, "MILLRACE_KAFKA_URL") }},
	{"rabbitmq", func(t *testing.T) string { return server(t, "MILLRACE_RABBITMQ_URL") }},
	{"postgres", postgresSchema},
	{"mysql", mysqlPrefix},
}

// name is unique on the servers.
func name(what string) string { return "wm-" + what + "-" + bus.NewID()[24:] }

// withParameter adds a parameter to a URL.
func withParameter(t *testing.T, raw, parameter, value string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(parameter, value)
	u.RawQuery = q.Encode()
	return u.String()
}

func postgresSchema(t *testing.T) string {
	raw := server(t, "MILLRACE_POSTGRES_URL")
	schema := strings.ReplaceAll(name("schema"), "-", "_")
	atEnd(t, "pgx", raw, func(ctx context.Context, db *sql.DB) error {
		_, err := db.ExecContext(ctx, "DROP SCHEMA IF EXISTS "+schema+" CASCADE")
		return err
	})
	return withParameter(t, raw, "schema", schema)
}

func mysqlPrefix(t *testing.T) string {
	raw := server(t, "MILLRACE_MYSQL_URL")
	prefix := strings.ReplaceAll(name("t"), "-", "_") + "_"
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	c := mysqldriver.NewConfig()
	c.Net, c.Addr, c.DBName, c.User = "tcp", u.Host, strings.Trim(u.Path, "/"), u.User.Username()
	c.Passwd, _ = u.User.Password()
	atEnd(t, "mysql", c.FormatDSN(), func(ctx context.Context, db *sql.DB) error {
		return dropAll(ctx, db, "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND LEFT(table_name, CHAR_LENGTH(?)) = ?", "`", prefix, prefix)
	})
	return withParameter(t, raw, "prefix", prefix)
}

// dropAll drops the tables that query names.
func dropAll(ctx context.Context, db *sql.DB, query, quote string, args ...any) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	var tables []string
	for rows.Next() {
		var table string
		if err := rows.Scan(&table); err != nil {
			return err
		}
		tables = append(tables, table)
	}
	for _, table := range tables {
		if _, err := db.ExecContext(ctx, fmt.Sprintf("DROP TABLE IF EXISTS %s%s%s", quote, table, quote)); err != nil {
			return err
		}
	}
	return rows.Err()
}

// atEnd cleans up in a database.
func atEnd(t *testing.T, driver, dsn string, clean func(ctx context.Context, db *sql.DB) error) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		db, err := sql.Open(driver, dsn)
		if err != nil {
			t.Error(err)
			return
		}
		defer db.Close()
		if err := clean(ctx, db); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
}

// open opens a bus that is closed at the end.
func open(t *testing.T, url string) *bus.Bus {
	t.Helper()
	b, err := bus.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return closing(t, b)
}

func closing(t *testing.T, b *bus.Bus) *bus.Bus {
	t.Helper()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}
