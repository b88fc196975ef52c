package sqlite

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/bus"
)

// TestOverlappingWriters inserts as the driver does, in transactions that stay open, each on a
// connection of its own.
func TestOverlappingWriters(t *testing.T) {
	const writers = 8
	path := filepath.Join(t.TempDir(), "bus.db")
	db, err := pool(path, writers+1, "synchronous(normal)", "journal_mode(WAL)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := &store{write: db, read: db, dialect: dialect(DefaultPrefix)}
	s.init()
	defer s.Close()
	sqltest.Torture(t, sqltest.Database{URL: "sqlite:" + path}, writers,
		func(ctx context.Context, topic, key string, payloads []string, pause time.Duration, rollback bool) error {
			var id int64
			var shards int
			if err := db.QueryRowContext(ctx, "SELECT id, shards FROM millrace_topic WHERE name = ?", topic).Scan(&id, &shards); err != nil {
				return err
			}
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return fmt.Errorf("begin: %w", err)
			}
			defer tx.Rollback()
			for _, p := range payloads {
				r := sqllog.Record{Shard: sqllog.Shard(key, shards), Message: &bus.Message{Key: key, Payload: []byte(p)}}
				if _, err := tx.ExecContext(ctx, s.topic(id).insert.text, appendRow(nil, &r, time.Now().UnixMicro())...); err != nil {
					return err
				}
			}
			<-time.After(pause / 10) // one writer at a time: only the waiting overlaps
			if rollback {
				return tx.Rollback()
			}
			return tx.Commit()
		})
}
