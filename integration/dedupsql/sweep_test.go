package dedupsql_test

import (
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/middleware/dedupsql"
)

// TestSweepSparesWhatIsRenewed: an expired id stays if it is remembered again while a sweep waits
// for its row.
func TestSweepSparesWhatIsRenewed(t *testing.T) {
	databases := map[dedupsql.Dialect]func(t *testing.T) (driver, dsn, waiting string){
		dedupsql.Postgres: func(t *testing.T) (driver, dsn, waiting string) {
			return "pgx", brokertest.URL(t, "postgres"), "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE FROM %TABLE%'"
		},
		dedupsql.MySQL: func(t *testing.T) (driver, dsn, waiting string) {
			dsn = brokertest.With(brokertest.MySQLDSN(brokertest.URL(t, "mysql")), "interpolateParams=true")
			return "mysql", dsn, "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'DELETE FROM %TABLE%'"
		},
	}
	for dialect, of := range databases {
		t.Run(string(dialect), func(t *testing.T) {
			driver, dsn, waiting := of(t)
			ctx := t.Context()
			table := "dedup_" + bus.NewID()[24:]
			waiting = strings.Replace(waiting, "TABLE", table, 1)
			db := open(t, driver, dsn)
			s, err := dedupsql.New(db, dedupsql.Config{Dialect: dialect, Table: table})
			if err != nil {
				t.Fatal(err)
			}
			exec := func(x interface {
				Exec(query string, args ...any) (sql.Result, error)
			}, text string,
			) {
				t.Helper()
				if _, err := x.Exec(text); err != nil {
					t.Fatalf("%s: %v", text, err)
				}
			}
			if err := s.CreateTable(ctx); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { exec(db, "DROP TABLE "+table) })
			if err := s.Remember(ctx, "g", []string{"1"}); err != nil {
				t.Fatal(err)
			}
			exec(db, "UPDATE "+table+" SET until = 1")
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			exec(tx, "UPDATE "+table+" SET until = 9000000000000") // as another process remembers it
			swept := make(chan error, 1)
			go func() {
				_, err := s.Sweep(ctx)
				swept <- err
			}()
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for n := 0; n == 0; <-tick.C { // until it waits, for which there is no event
				if err := db.QueryRowContext(ctx, waiting).Scan(&n); err != nil {
					t.Fatal(err)
				}
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := <-swept; err != nil {
				t.Fatal(err)
			}
			if seen, err := s.Seen(ctx, "g", []string{"1"}); err != nil || !seen[0] {
				t.Errorf("remembered %v, %v", seen, err)
			}
		})
	}
}
