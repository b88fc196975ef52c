package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/bus"
)

// TestOverlappingWriters draws numbers as the driver does, in transactions that stay open.
func TestOverlappingWriters(t *testing.T) {
	text := sqltest.ServerURL(t, "MILLRACE_MYSQL_URL")
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	c := driver.NewConfig()
	c.Net, c.Addr, c.DBName, c.User = "tcp", u.Host, u.Path[1:], u.User.Username()
	c.Passwd, _ = u.User.Password()
	connector, err := driver.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	prefix := "t" + bus.NewID()[24:] + "_"
	t.Cleanup(func() {
		for _, table := range []string{"topic", "log", "grp", "lane", "member", "poison", "meta"} {
			if _, err := db.ExecContext(context.Background(), "DROP TABLE IF EXISTS "+prefix+table); err != nil {
				t.Error(err)
			}
		}
		db.Close()
	})
	s := &store{db: db, dialect: dialect(prefix)}
	s.init()
	sqltest.Torture(t, sqltest.Database{URL: sqltest.With(text, "prefix="+prefix)}, 8,
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
			next, err := s.numbers(ctx, tx, batch)
			if err != nil {
				return err
			}
			one := s.inserts[len(s.inserts)-1]
			for i := range batch {
				if _, err := tx.ExecContext(ctx, one.text, appendRow(nil, &batch[i], next[id])...); err != nil {
					return err
				}
				next[id]++
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
