package sqlite_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
)

func BenchmarkPublish(b *testing.B) { sqltest.BenchPublish(b, database(b)) }
func BenchmarkConsume(b *testing.B) { sqltest.BenchConsume(b, database(b)) }

// BenchmarkRaw measures the library itself: a plain table with the same columns, one prepared
// statement.
func BenchmarkRaw(b *testing.B) {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "raw.db")+"?_journal_mode=WAL&_synchronous=FULL")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("CREATE TABLE log (seq INTEGER PRIMARY KEY, id TEXT, key TEXT, type TEXT, source TEXT, subject TEXT, time INTEGER, content_type TEXT, headers TEXT, payload BLOB)"); err != nil {
		b.Fatal(err)
	}
	insert, err := db.Prepare("INSERT INTO log (id, key, type, source, subject, time, content_type, headers, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	write := func(b *testing.B, batch int) {
		tx, err := db.BeginTx(context.Background(), nil)
		if err != nil {
			b.Fatal(err)
		}
		stmt := tx.Stmt(insert)
		for _, m := range sqltest.BenchMessages(batch) {
			n++
			if _, err := stmt.Exec("0190aaaa-bbbb-7ccc-8ddd-000000000000", m.Key, m.Type, "/shop", "", n, m.ContentType, nil, m.Payload); err != nil {
				b.Fatal(err)
			}
		}
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("each100", func(b *testing.B) {
		for range b.N {
			write(b, 100)
		}
		b.ReportMetric(float64(b.N*100)/b.Elapsed().Seconds(), "msg/s")
	})
	b.Run("each1", func(b *testing.B) {
		for range b.N {
			write(b, 1)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
	for n < 200_000 {
		write(b, 1000)
	}
	b.Run("read", func(b *testing.B) {
		read := 0
		for range b.N {
			rows, err := db.Query("SELECT seq, id, key, type, source, subject, time, content_type, headers, payload FROM log ORDER BY seq")
			if err != nil {
				b.Fatal(err)
			}
			for rows.Next() {
				var seq, time int64
				var id, key, typ, source, subject, contentType string
				var headers sql.NullString
				var payload []byte
				if err := rows.Scan(&seq, &id, &key, &typ, &source, &subject, &time, &contentType, &headers, &payload); err != nil {
					b.Fatal(err)
				}
				read++
			}
			if err := rows.Err(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(read)/b.Elapsed().Seconds(), "msg/s")
	})
}
