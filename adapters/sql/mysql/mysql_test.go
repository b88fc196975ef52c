package mysql_test

import (
	"context"
	"database/sql"
	"net/url"
	"os"
	"testing"

	driver "github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqltest"
	"github.com/millrace-go/millrace/adapters/sql/mysql"
	"github.com/millrace-go/millrace/bus"
)

func TestMain(m *testing.M) {
	if sqltest.Child() {
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// database returns tables of the test's own, which go when the test ends.
func database(t testing.TB) sqltest.Database {
	text := sqltest.ServerURL(t, "MILLRACE_MYSQL_URL")
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	c := driver.NewConfig()
	c.Net, c.Addr, c.DBName, c.User = "tcp", u.Host, u.Path[1:], u.User.Username()
	c.Passwd, _ = u.User.Password()
	c.InterpolateParams = true
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
	return sqltest.Database{URL: sqltest.With(text, "prefix="+prefix), Prefix: prefix, DB: db}
}

func TestServer(t *testing.T)    { sqltest.Run(t, database(t)) }
func TestCuts(t *testing.T)      { sqltest.Cuts(t, database(t)) }
func TestPartition(t *testing.T) { sqltest.Partition(t, database(t)) }
func TestRetention(t *testing.T) { sqltest.Retention(t, database(t)) }

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
