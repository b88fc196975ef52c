package mysql

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
)

// TestOverlappingWriters draws numbers as the driver does, in transactions that stay open.
func TestOverlappingWriters(t *testing.T) {
	db, prefix := testPool(t), brokertest.Prefix(t)
	s := &store{db: db, dialect: dialect(prefix)}
	s.init()
	sqltest.Torture(t, sqltest.Database{URL: brokertest.With(brokertest.URL(t, "mysql"), "prefix="+prefix)}, 8,
		func(ctx context.Context, topic, key string, payloads []string, pause time.Duration, rollback bool) error {
			var id int64
			var shards int
			if err := db.QueryRowContext(ctx, "SELECT id, shards FROM "+prefix+"topic WHERE name = ?", topic).Scan(&id, &shards); err != nil {
				return err
			}
			var batch []sqllog.Record
			for _, p := range payloads {
				batch = append(batch, sqllog.Record{Topic: id, Shard: sqllog.Shard(key, shards), Message: &bus.Message{Key: key, Payload: []byte(p)}})
			}
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			for i := range batch {
				if _, err := tx.ExecContext(ctx, s.inserts.text(1), appendRow(nil, &batch[i])...); err != nil {
					return err
				}
			}
			if _, err := tx.ExecContext(ctx, fmt.Sprintf("DO SLEEP(%f)", pause.Seconds())); err != nil {
				return err
			}
			if rollback {
				return tx.Rollback()
			}
			return tx.Commit()
		})
}
