package mysql_test

import (
	"database/sql"
	"errors"
	"os"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/mysql"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
)

func TestMain(m *testing.M) {
	if sqltest.Child(connect) {
		os.Exit(0)
	}
	goleak.VerifyTestMain(testlog.Strict(m))
}

// connect makes a pool with the library's default settings.
func connect(text string) (*sql.DB, error) {
	c, err := driver.ParseDSN(brokertest.MySQLDSN(text))
	if err != nil {
		return nil, err
	}
	c.MaxAllowedPacket = 0
	c.Logger = &driver.NopLogger{}
	connector, err := driver.NewConnector(c)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// database returns tables of the test's own, which go when the test ends.
func database(t testing.TB) sqltest.Database {
	url, prefix := brokertest.URL(t, "mysql"), brokertest.Prefix(t)
	db, err := connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return sqltest.Database{URL: brokertest.With(url, "prefix="+prefix), Prefix: prefix, DB: db, Connect: connect}
}

func TestServer(t *testing.T)      { sqltest.Run(t, database(t)) }
func TestExactlyOnce(t *testing.T) { sqltest.ExactlyOnce(t, database(t), true) }

func TestCuts(t *testing.T)      { sqltest.Cuts(t, database(t)) }
func TestPartition(t *testing.T) { sqltest.Partition(t, database(t)) }
func TestRetention(t *testing.T) { sqltest.Retention(t, database(t)) }
func TestOlder(t *testing.T)     { sqltest.Older(t, database(t)) }
func TestLeaseLost(t *testing.T) { sqltest.LeaseLost(t, database(t)) }

func TestStandsStill(t *testing.T) { sqltest.StandsStill(t, database(t)) }
func TestParksOnce(t *testing.T)   { sqltest.ParksOnce(t, database(t)) }

func TestParksAsItsLaneGoes(t *testing.T) { sqltest.ParksAsItsLaneGoes(t, database(t)) }
func TestDenied(t *testing.T)             { sqltest.Denied(t, database(t)) }

func TestRoundTrips(t *testing.T)  { sqltest.RoundTrips(t, database(t)) }
func TestAllocations(t *testing.T) { sqltest.Allocations(t, database(t), 8, 40, 20) }

func TestVersions(t *testing.T) {
	db := database(t)
	script, err := mysql.Migrations(db.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	sqltest.Versions(t, db, script)
}

func BenchmarkPublish(b *testing.B) { sqltest.BenchPublish(b, database(b)) }
func BenchmarkConsume(b *testing.B) { sqltest.BenchConsume(b, database(b)) }

func TestExistingPool(t *testing.T) {
	db := database(t)
	for range 2 { // a bus leaves the pool open
		b, err := mysql.New(t.Context(), db.DB, mysql.Config{Prefix: db.Prefix, Shards: 3})
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := bus.As[*sql.DB](b); !ok || got != db.DB {
			t.Error("As")
		}
		sqltest.Existing(t, b)
	}
	if err := db.DB.PingContext(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLargestMessage publishes a message that just fits into the server's packet, among small ones,
// and one that does not fit.
func TestLargestMessage(t *testing.T) {
	b := database(t).Open(t)
	limit := b.Driver().Capabilities().MaxMessage
	if limit < 1<<20 {
		t.Fatalf("at most %d bytes", limit)
	}
	topic := sqltest.Topic()
	large := &bus.Message{Key: "k", Payload: make([]byte, limit-2000)}
	msgs := append(sqltest.Texts("a", "b"), large)
	sqltest.Publish(t, b, topic, append(msgs, sqltest.Texts("c")...)...)
	s := sqltest.Subscribe(t, b, topic, "g", bus.Earliest, sqltest.NewObserver())
	for _, d := range sqltest.Receive(t, s, 4) {
		if d.Key == "k" && len(d.Payload) != len(large.Payload) {
			t.Errorf("%d bytes", len(d.Payload))
		}
	}
	large.Payload = make([]byte, limit)
	err := b.PublishMessages(t.Context(), topic, large)
	if !errors.Is(err, bus.ErrTooLarge) || !bus.IsDefinite(err) {
		t.Errorf("%v", err)
	}
}

func TestURLs(t *testing.T) {
	sqltest.URLs(t, map[string]string{
		"mysql:opaque":                            "want mysql://",
		"mysql://u:hunter2@localhost":             "want mysql://",
		"mysql://u:hunter2@localhost/x?tls=maybe": "want one of false, true",
		"mysql://u:hunter2@localhost/x?prefix=A":  "the first a letter",
		"mysql://u:hunter2@localhost/x?typo=1":    "is unknown",
		"mariadb://u:hunter2@127.0.0.1:1/x":       "connection refused",
		"mysql://u:hunter2@/x?socket=/no/such":    "no such file",
	})
	for _, c := range []mysql.Config{{Shards: 257}, {Lease: 1}, {Poll: -1}, {Commit: time.Hour}, {Retention: -1}, {Prefix: "x y"}} {
		if _, err := mysql.New(t.Context(), nil, c); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestDependencies(t *testing.T) {
	sqltest.Dependencies(t, "github.com/millrace-go/millrace/adapters/sql/mysql", "github.com/go-sql-driver/mysql", "filippo.io/edwards25519")
}
