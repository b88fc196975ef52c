package eventstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// tables are a bus's URL, a way to its database, and what comes before the names of its tables.
type tables struct {
	url    string
	db     *sql.DB
	prefix string
}

func parameter(t *testing.T, rawURL, name string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get(name)
}

func sqliteTables(t *testing.T) tables {
	path := filepath.Join(t.TempDir(), "bus.db")
	return tables{"sqlite://" + path, openDB(t, "sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?_busy_timeout=30000"), "millrace_"}
}

func postgresTables(t *testing.T) tables {
	url := brokertest.Postgres(t)
	return tables{url, openDB(t, "pgx", brokertest.URL(t, "postgres")), parameter(t, url, "schema") + "."}
}

func mysqlTables(t *testing.T) tables {
	url := brokertest.MySQL(t)
	return tables{url, openDB(t, "mysql", brokertest.MySQLDSN(brokertest.URL(t, "mysql"))), parameter(t, url, "prefix")}
}

func (d tables) count(t *testing.T, query string) (n int) {
	t.Helper()
	if err := d.db.QueryRowContext(t.Context(), fmt.Sprintf(query, d.prefix)).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (d tables) version(t *testing.T) int { return d.count(t, "SELECT version FROM %smeta") }

func TestSQLiteUpgrade(t *testing.T)   { upgrade(t, sqliteTables(t)) }
func TestPostgresUpgrade(t *testing.T) { upgrade(t, postgresTables(t)) }
func TestMySQLUpgrade(t *testing.T)    { upgrade(t, mysqlTables(t)) }

// upgrade: a bus without stores leaves the tables at the version that programs know which have no
// stores. The first store makes its tables beside what is there, also if several programs do at
// once.
func upgrade(t *testing.T, d tables) {
	t.Parallel()
	ctx := t.Context()
	b := openURL(t, d.url)
	publish := func(to string, texts ...string) {
		for _, text := range texts {
			if err := b.Publish(ctx, to, &bus.Message{ID: text, Key: "a"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish("plain", "1", "2")
	receive(t, b, "plain", "1", "2")
	publish("plain", "3")
	if v := d.version(t); v != 2 {
		t.Errorf("without a store the tables have version %d", v)
	}
	careful := openURL(t, brokertest.With(d.url, "migrate=false"))
	if _, err := eventstore.Open(ctx, careful, "events"); !errors.Is(err, bus.ErrUnsupported) || bus.IsRetryable(err) {
		t.Errorf("a store, with migrate=false: %v", err)
	}
	if v := d.version(t); v != 2 {
		t.Errorf("with migrate=false the tables have come to version %d", v)
	}

	var wg sync.WaitGroup
	for i := range 4 {
		other := openURL(t, d.url)
		wg.Go(func() {
			s, err := eventstore.Open(ctx, other, fmt.Sprintf("events-%d", i%2))
			if err == nil {
				_, err = s.Append(ctx, "a", eventstore.Any, &bus.Message{Type: "test"})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if v := d.version(t); v != 3 {
		t.Errorf("with stores the tables have version %d", v)
	}
	// The bus that was there before goes on, and learns what is a store.
	publish("plain", "4")
	receive(t, b, "plain", "3", "4")
	publish("events-0", "5")
	for _, bus := range []*bus.Bus{b, careful} {
		s, err := eventstore.Open(ctx, bus, "events-0")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for e, err := range s.Read(ctx, "a", 1) {
			if n++; err != nil || e.Version != int64(n) {
				t.Errorf("%d: %v, %v", n, e, err)
			}
		}
		if n != 3 {
			t.Errorf("%d events", n)
		}
	}
	if _, err := eventstore.Open(ctx, b, "plain"); !errors.Is(err, bus.ErrInvalid) {
		t.Errorf("a plain topic: %v", err)
	}
}

// receive has a group handle messages, which must be those with the ids.
func receive(t *testing.T, b *bus.Bus, topic string, ids ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := router.New(b, "group", router.Logger(testlog.New(t)))
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		if len(ids) == 0 || m.ID != ids[0] {
			t.Errorf("received %q, want %q", m.ID, ids)
			return nil
		}
		if ids = ids[1:]; len(ids) == 0 {
			cancel()
		}
		return nil
	})
	if err := r.Run(ctx); err != nil {
		t.Error(err)
	}
	if len(ids) > 0 {
		t.Errorf("%q did not come", ids)
	}
}

func TestSQLiteRetention(t *testing.T)   { retention(t, sqliteTables(t), "%slog_2") }
func TestPostgresRetention(t *testing.T) { retention(t, postgresTables(t), "%slog") }
func TestMySQLRetention(t *testing.T)    { retention(t, mysqlTables(t), "%slog") }

// retention: old messages of topics are deleted, and no events.
func retention(t *testing.T, d tables, log string) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := openURL(t, brokertest.With(d.url, "retention=1ms"))
	s, err := eventstore.Open(ctx, b, "events") // first: SQLite has no log of it that could be swept
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := s.Append(ctx, "a", eventstore.Any, &bus.Message{Type: "test"}); err != nil {
			t.Fatal(err)
		}
		if err := b.Publish(ctx, "plain", &bus.Message{Key: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	for tick := time.NewTicker(20 * time.Millisecond); d.count(t, "SELECT COUNT(*) FROM "+log) == 10 && ctx.Err() == nil; <-tick.C {
	}
	n := 0
	for _, err := range s.All(ctx, 0) {
		if n++; err != nil {
			t.Error(err)
		}
	}
	if n != 10 || ctx.Err() != nil {
		t.Errorf("%d events are left of 10, %v", n, ctx.Err())
	}
}
