package all_test

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	mysql "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

type (
	quoteRequest struct{ SKU string }
	quote        struct{ Cents int }
)

// TestRequest asks from one bus and answers on another, on every broker.
func TestRequest(t *testing.T) {
	t.Run("memory", func(t *testing.T) { requests(t, "memory:"+bus.NewID(), nil) })
	t.Run("sqlite", func(t *testing.T) { requests(t, "sqlite:"+filepath.Join(t.TempDir(), "bus.db"), nil) })
	t.Run("kafka", func(t *testing.T) { requests(t, brokerURL(t, "MILLRACE_KAFKA_URL"), dropKafka) })
	t.Run("rabbitmq", func(t *testing.T) { requests(t, brokerURL(t, "MILLRACE_RABBITMQ_URL"), dropRabbitMQ) })
	t.Run("postgres", func(t *testing.T) { requests(t, ownSchema(t), nil) })
	t.Run("mysql", func(t *testing.T) { requests(t, ownPrefix(t), nil) })
}

// requests has three callers make requests at once, refused ones and abandoned ones among them. drop deletes a topic and
// its one group.
func requests(t *testing.T, url string, drop func(t *testing.T, b *bus.Bus, topic, group string)) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	tag := bus.NewID()
	topic, group := "quotes-"+tag, "pricing-"+tag
	open := func(opts ...bus.Option) *bus.Bus {
		b, err := bus.Open(ctx, url, opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		return b
	}
	if drop != nil {
		b := open()
		t.Cleanup(func() {
			drop(t, b, topic, group)
			for i := range 3 {
				drop(t, b, inboxName(i, tag), inboxName(i, tag))
			}
		})
	}
	server := open()
	goOn := make(chan struct{})
	r := router.New(server, group)
	r.Handle(topic, bus.Reply(func(ctx context.Context, q quoteRequest) (quote, error) {
		if q.SKU == "" {
			return quote{}, bus.Permanent(errors.New("no SKU"))
		}
		if q.SKU == "wait" {
			select {
			case <-goOn:
			case <-ctx.Done():
			}
		}
		return quote{len(q.SKU)}, nil
	}))
	serving, stop := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() { over <- r.Run(serving) }()
	defer func() {
		stop()
		if err := <-over; err != nil {
			t.Error(err)
		}
	}()
	// Who answers has begun before, or a topic that has no group yet may not exist.
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	var clients []*bus.Bus
	for i := range 3 {
		b := open(bus.WithInbox(inboxName(i, tag)))
		clients = append(clients, b)
		for n := range 20 {
			callers.Go(func() {
				sku := "0123456789012345678901234567890123456789"[:i*10+n]
				q, err := bus.Request[quote](ctx, b, topic, quoteRequest{sku}, bus.WithKey(strconv.Itoa(n)))
				if sku == "" {
					if refused, ok := errors.AsType[*bus.ReplyError](err); !ok || refused.Text != "no SKU" {
						t.Errorf("a refusal: %v", err)
					}
				} else if err != nil || q.Cents != len(sku) {
					t.Errorf("%q: %v, %v", sku, q, err)
				}
			})
		}
	}
	callers.Wait()
	for i, b := range clients {
		if n := b.LateReplies(); n != 0 { // nobody gets what another asked for
			t.Errorf("client %d got %d replies too many", i, n)
		}
	}
	leaving, leave := context.WithTimeout(ctx, time.Millisecond)
	defer leave()
	if _, err := bus.Request[quote](leaving, clients[0], topic, quoteRequest{"wait"}); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(goOn)
	if _, err := bus.Request[quote](ctx, clients[0], topic, quoteRequest{"still there"}); err != nil {
		t.Error(err)
	}
}

func inboxName(i int, tag string) string { return "replies-" + strconv.Itoa(i) + "-" + tag }

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
