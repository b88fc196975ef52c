package postgres_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/postgres"
	"github.com/millrace-go/millrace/bus"
)

// TestDurability: a commit is as durable as the server makes it, and the driver's sessions change
// nothing about it. No table is left out of the write-ahead log.
func TestDurability(t *testing.T) {
	db := database(t)
	b := db.Open(t)
	sqltest.Publish(t, b, sqltest.Topic(), sqltest.BenchMessages(300)...)
	pool, ok := bus.As[*pgxpool.Pool](b)
	if !ok {
		t.Fatal("As")
	}
	for range postgres.DefaultPoolSize / 2 { // each another one, as long as the others are held
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		rows, _ := conn.Query(t.Context(), "SELECT name, setting, source FROM pg_settings WHERE name IN ('synchronous_commit', 'fsync', 'full_page_writes')")
		var name, setting, source string
		_, err = pgx.ForEachRow(rows, []any{&name, &setting, &source}, func() error {
			if setting != "on" || source == "session" || source == "client" {
				t.Errorf("%s is %s, set by: %s", name, setting, source)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var all, logged int
	err := db.DB.QueryRowContext(t.Context(), "SELECT COUNT(*), COUNT(*) FILTER (WHERE relpersistence = 'p') FROM pg_class WHERE relnamespace = $1::regnamespace",
		db.Prefix[:len(db.Prefix)-1]).Scan(&all, &logged)
	if err != nil {
		t.Fatal(err)
	}
	if all == 0 || logged != all {
		t.Errorf("%d of %d relations are in the write-ahead log", logged, all)
	}
}
