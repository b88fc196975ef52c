package postgres

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
)

// TestOverlappingWriters runs the driver's own insert in transactions that stay open. Another,
// unrelated transaction stays open for all of the time.
func TestOverlappingWriters(t *testing.T) {
	const writers = 8
	url, schema := brokertest.URL(t, "postgres"), brokertest.Schema(t)
	pc, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	pc.MaxConns = writers + 2
	pool, err := pgxpool.NewWithConfig(t.Context(), pc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s := newStore(pool, false, schema)
	d, err := sqllog.New(t.Context(), s, sqllog.Config{}) // makes the tables
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	unrelated, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unrelated.Rollback(context.Background())
	if _, err := unrelated.Exec(t.Context(), "INSERT INTO "+schema+".poison (grp, id, entry) VALUES ('x', 'x', 'null')"); err != nil {
		t.Fatal(err)
	}
	sqltest.Torture(t, sqltest.Database{URL: brokertest.With(url, "schema="+schema)}, writers,
		func(ctx context.Context, topic, key string, payloads []string, pause time.Duration, rollback bool) error {
			var id int64
			var shards int
			if err := pool.QueryRow(ctx, "SELECT id, shards FROM "+schema+".topic WHERE name = $1", topic).Scan(&id, &shards); err != nil {
				return err
			}
			var batch []sqllog.Record
			for _, p := range payloads {
				batch = append(batch, sqllog.Record{Topic: id, Shard: sqllog.Shard(key, shards), Message: &bus.Message{Key: key, Payload: []byte(p)}})
			}
			undo := errors.New("undo")
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				var e encoder
				result := tx.Conn().PgConn().ExecParams(ctx, s.insert.text, e.encode(s.class, batch), s.insert.params, inBinary, inBinary)
				if _, err := result.Close(); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, "SELECT pg_sleep($1)", pause.Seconds()); err != nil {
					return err
				}
				if rollback {
					return undo
				}
				return nil
			})
			if rollback && errors.Is(err, undo) {
				return nil
			}
			return err
		})
}

func TestFence(t *testing.T) {
	var f fence
	step := func(head int64, holders string, want int64) {
		t.Helper()
		if f.see(head, strings.Fields(holders)); f.safe != want {
			t.Errorf("head %d, holders %q: safe up to %d, want %d", head, holders, f.safe, want)
		}
	}
	step(10, "", 10)
	step(12, "1/1", 10)                      // 1/1 may have drawn 11 or 12
	step(15, "1/1 2/7", 10)                  // still
	step(17, "2/7 3/1", 12)                  // 1/1 has gone
	step(18, "2/7 -1/99", 12)                // a prepared transaction may be the former 3/1
	step(19, "4/1", 18)                      // nobody of those is left
	step(19, "", 19)                         // nor 4/1
	for i := range int64(2 * maxSightings) { // a writer hangs
		step(20+i, "5/5", 19)
	}
	if len(f.pending) != maxSightings {
		t.Errorf("%d sightings are kept", len(f.pending))
	}
	step(100, "6/6", 19+2*maxSightings)
	step(101, "", 101)
	for _, of := range []struct{ head, started int64 }{{200, 1}, {201, 1}, {201, 2}, {199, 2}} {
		same := of.head > 199 && of.started == 1
		if f.check(of.head, of.started) != same || (f.safe == 101) != same {
			t.Errorf("head %d of a server started at %d: safe up to %d", of.head, of.started, f.safe)
		}
	}
}
