package sqlite

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/bus"
)

// TestDurability: published messages are on the disk, unless the user has said otherwise. The same
// holds for settlements, and for programs that write through the pool that they are given.
func TestDurability(t *testing.T) {
	for synchronous, want := range map[string]int{"": 2, "full": 2, "normal": 1} {
		c := Config{Synchronous: synchronous}
		common, err := c.complete()
		if err != nil {
			t.Fatal(err)
		}
		s, err := openStore(filepath.Join(t.TempDir(), "bus.db"), c)
		if err != nil {
			t.Fatal(err)
		}
		d, err := newDriver(t.Context(), s, c, common)
		if err != nil {
			t.Fatal(err)
		}
		b := bus.New(d)
		sqltest.Publish(t, b, "t", sqltest.Texts("a", "b")...)
		for name, db := range map[string]*sql.DB{"written": s.write, "read": s.read} {
			var got int
			var journal string
			if err := db.QueryRowContext(t.Context(), "PRAGMA synchronous").Scan(&got); err != nil {
				t.Fatal(err)
			}
			if err := db.QueryRowContext(t.Context(), "PRAGMA journal_mode").Scan(&journal); err != nil {
				t.Fatal(err)
			}
			if got != want || journal != "wal" {
				t.Errorf("synchronous %q, connection that is %s: %d, %s; want %d, wal", synchronous, name, got, journal, want)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
