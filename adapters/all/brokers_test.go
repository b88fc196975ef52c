package all_test

import (
	"context"
	"database/sql"
	"net/url"
	"os"
	"strconv"
	"testing"
	"time"

	mysql "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

func brokerURL(t *testing.T, variable string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a broker")
	}
	text := os.Getenv(variable)
	if text == "" && os.Getenv("MILLRACE_REQUIRE_BROKERS") != "" {
		t.Fatalf("%s is not set", variable)
	}
	if text == "" {
		t.Skipf("%s is not set: run `make brokers` and `. .brokers/env`", variable)
	}
	return text
}

// with adds a parameter to a URL.
func with(t *testing.T, text, name, value string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// ownSchema is PostgreSQL with a schema of the test's own, which goes when the test ends.
func ownSchema(t *testing.T) string {
	text := brokerURL(t, "MILLRACE_POSTGRES_URL")
	schema := "t" + bus.NewID()[24:]
	t.Cleanup(func() {
		db, err := sql.Open("pgx", text)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.ExecContext(context.Background(), "DROP SCHEMA IF EXISTS "+schema+" CASCADE"); err != nil {
			t.Error(err)
		}
	})
	return with(t, text, "schema", schema)
}

// ownPrefix is MySQL with tables of the test's own, which go when the test ends.
func ownPrefix(t *testing.T) string {
	text := brokerURL(t, "MILLRACE_MYSQL_URL")
	prefix := "t" + bus.NewID()[24:] + "_"
	t.Cleanup(func() {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		c := mysql.NewConfig()
		c.Net, c.Addr, c.DBName, c.User = "tcp", u.Host, u.Path[1:], u.User.Username()
		c.Passwd, _ = u.User.Password()
		db, err := sql.Open("mysql", c.FormatDSN())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		rows, err := db.QueryContext(context.Background(), "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name LIKE ?", prefix+"%")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var tables []string
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				t.Fatal(err)
			}
			tables = append(tables, name)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		for _, name := range tables {
			if _, err := db.ExecContext(context.Background(), "DROP TABLE "+name); err != nil {
				t.Error(err)
			}
		}
	})
	return with(t, text, "prefix", prefix)
}

func dropKafka(t *testing.T, b *bus.Bus, topic, group string) {
	client, ok := bus.As[*kgo.Client](b)
	if !ok {
		t.Fatal("no Kafka client")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	adm := kadm.NewClient(client)
	if _, err := adm.DeleteTopics(ctx, topic); err != nil {
		t.Error(err)
	}
	if _, err := adm.DeleteGroups(ctx, group); err != nil {
		t.Error(err)
	}
}

func dropRabbitMQ(t *testing.T, b *bus.Bus, topic, group string) {
	conn, ok := bus.As[*amqp.Connection](b)
	if !ok {
		t.Fatal("no RabbitMQ connection")
	}
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	group = topic + ":" + group
	for _, name := range []string{group, group + ":lanes=8", group + ":ready", group + ":moved", topic, topic + "::unrouted"} {
		if err := ch.ExchangeDelete(name, false, false); err != nil {
			t.Error(err)
		}
	}
	queues := []string{topic + "::unrouted"}
	for i := range 8 {
		lane := group + ":" + strconv.Itoa(i)
		queues = append(queues, lane, lane+":early", lane+":parked")
	}
	for _, name := range queues {
		if _, err := ch.QueueDelete(name, false, false, false); err != nil {
			t.Error(err)
		}
	}
}
