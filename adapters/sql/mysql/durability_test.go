package mysql_test

import (
	"database/sql"
	"testing"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/bus"
)

// TestDurability: a commit is as durable as the server makes it, and the driver's sessions change
// nothing about it.
func TestDurability(t *testing.T) {
	db := database(t)
	b := db.Open(t)
	sqltest.Publish(t, b, sqltest.Topic(), sqltest.BenchMessages(300)...)
	own, ok := bus.As[*sql.DB](b)
	if !ok {
		t.Fatal("As")
	}
	const settings = "SELECT CONCAT_WS(' ', @@global.innodb_flush_log_at_trx_commit, @@global.sync_binlog, @@global.innodb_doublewrite, @@sql_log_bin, @@autocommit, @@sql_mode)"
	var theirs, ours string
	if err := db.DB.QueryRowContext(t.Context(), settings).Scan(&theirs); err != nil {
		t.Fatal(err)
	}
	for range own.Stats().OpenConnections { // each of them, as long as the others are held
		conn, err := own.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.QueryRowContext(t.Context(), settings).Scan(&ours); err != nil {
			t.Fatal(err)
		}
		if ours != theirs {
			t.Errorf("settings %q, want the server's: %q", ours, theirs)
		}
	}
	var flush int
	if err := db.DB.QueryRowContext(t.Context(), "SELECT @@innodb_flush_log_at_trx_commit").Scan(&flush); err != nil {
		t.Fatal(err)
	}
	if flush != 1 {
		t.Errorf("innodb_flush_log_at_trx_commit is %d: the tests want a server that flushes", flush)
	}
	rows, err := db.DB.QueryContext(t.Context(), "SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE() AND LEFT(table_name, ?) = ?", len(db.Prefix), db.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	tables := 0
	for rows.Next() {
		var name, engine string
		if err := rows.Scan(&name, &engine); err != nil {
			t.Fatal(err)
		}
		tables++
		if engine != "InnoDB" {
			t.Errorf("table %s: %s", name, engine)
		}
	}
	if err := rows.Err(); err != nil || tables == 0 {
		t.Errorf("%d tables, %v", tables, err)
	}
}
