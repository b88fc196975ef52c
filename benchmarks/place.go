package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	stdsql "database/sql"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// place is where one round happens: a topic of its own, and for SQL tables of its own. A broker
// that had to keep the topics of all rounds would become slower with each.
type place struct {
	broker string
	// url is for the clients themselves. ours is the same with Millrace's parameters.
	url, ours string
	// topic is also the name of the group, and part of the name of everything else that the round
	// makes.
	topic string
	lanes int
	// target is where the messages go that are written here; nil but for the relay's path.
	target *place
	clean  func(ctx context.Context) error
}

// brokers are all there are, in the order of the table.
var brokers = []string{"memory", "kafka", "rabbitmq", "postgres", "mysql", "sqlite"}

// brokerURL returns where the broker is, "" if nothing says so.
func brokerURL(broker string) string {
	switch broker {
	case "memory", "sqlite":
		return broker + ":"
	case "outbox":
		return brokerURL("postgres")
	default:
		return os.Getenv("MILLRACE_" + strings.ToUpper(broker) + "_URL")
	}
}

// defaultLanes are the lanes of topics on all sides: Millrace's defaults, and for Kafka the
// partitions of the targets.
var defaultLanes = map[string]int{"memory": 16, "kafka": 4, "rabbitmq": 8, "postgres": 16, "mysql": 16, "sqlite": 16}

// newPlace makes a place on the broker. 0 lanes are the default.
func newPlace(ctx context.Context, broker string, lanes int) (*place, error) {
	p := &place{
		broker: broker, url: brokerURL(broker), topic: "bench_" + strings.ToLower(rand.Text()[:12]), lanes: lanes,
		clean: func(context.Context) error { return nil },
	}
	if p.url == "" {
		return nil, fmt.Errorf("MILLRACE_%s_URL is not set: run make brokers and . .brokers/env", strings.ToUpper(broker))
	}
	if lanes == 0 {
		p.lanes = defaultLanes[broker]
	}
	p.ours = p.url
	var err error
	switch broker {
	case "kafka":
		err = p.onKafka(ctx)
	case "rabbitmq":
		p.ours = with(p.url, "queue", *queueType, "lanes", fmt.Sprint(p.lanes), "unrouted", fmt.Sprint(2*mostCount))
		p.clean = p.cleanRabbitMQ
	case "postgres":
		err = p.onPostgres(ctx)
	case "mysql":
		p.ours = with(p.url, "prefix", p.topic+"_", "shards", fmt.Sprint(p.lanes))
		p.clean = p.cleanMySQL
	case "sqlite":
		err = p.onSQLite()
	case "outbox":
		err = p.onOutbox(ctx)
	}
	return p, err
}

// remove deletes everything the round has made, also when the program was interrupted.
func (p *place) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := p.clean(ctx); err != nil {
		return fmt.Errorf("remove %s: %w", p.topic, err)
	}
	return nil
}

// with adds parameters to a URL: name, value, name, value.
func with(rawURL string, params ...string) string {
	base, query, _ := strings.Cut(rawURL, "?")
	q, _ := url.ParseQuery(query)
	for i := 0; i < len(params); i += 2 {
		q.Set(params[i], params[i+1])
	}
	return base + "?" + q.Encode()
}

// hosts returns the URL's hosts.
func hosts(rawURL string) ([]string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	return strings.Split(u.Host, ","), nil
}

func (p *place) onKafka(ctx context.Context) error {
	admin := func(f func(*kadm.Client) error) error {
		addresses, err := hosts(p.url)
		if err != nil {
			return err
		}
		cl, err := kgo.NewClient(kgo.SeedBrokers(addresses...))
		if err != nil {
			return err
		}
		defer cl.Close()
		return f(kadm.NewClient(cl))
	}
	p.clean = func(ctx context.Context) error {
		return admin(func(a *kadm.Client) error {
			_, err := a.DeleteTopics(ctx, p.topic)
			_, groupErr := a.DeleteGroups(ctx, p.topic) // an error for a group that there never was is inside of the result
			return errors.Join(err, groupErr)
		})
	}
	return admin(func(a *kadm.Client) error {
		_, err := a.CreateTopic(ctx, int32(p.lanes), 1, nil, p.topic)
		return err
	})
}

// cleanRabbitMQ deletes everything that all sides declare. Deleting a missing thing is no error.
func (p *place) cleanRabbitMQ(context.Context) error {
	conn, err := amqp.Dial(p.url)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	group := p.topic + ":" + p.topic
	exchanges := []string{p.topic, p.topic + "::unrouted", group, fmt.Sprintf("%s:lanes=%d", group, p.lanes)}
	queues := []string{p.topic, p.topic + "::unrouted", p.topic + "::lock", p.topic + ":poison"}
	for _, of := range []string{":members", ":ready", ":moved", ":latest"} {
		exchanges = append(exchanges, group+of)
		queues = append(queues, group+of)
	}
	for i := range p.lanes {
		queues = append(queues, rawLane(p.topic, i), fmt.Sprintf("%s:%d", group, i), fmt.Sprintf("%s:%d:early", group, i), fmt.Sprintf("%s:%d:parked", group, i))
	}
	for _, name := range exchanges {
		if err := ch.ExchangeDelete(name, false, false); err != nil {
			return err
		}
	}
	for _, name := range queues {
		if _, err := ch.QueueDelete(name, false, false, false); err != nil {
			return err
		}
	}
	return nil
}

// onPostgres gives the round a schema.
func (p *place) onPostgres(ctx context.Context) error {
	exec := func(ctx context.Context, query string) error {
		conn, err := pgx.Connect(ctx, brokerURL("postgres"))
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, query)
		return err
	}
	p.url = with(p.url, "search_path", p.topic)
	p.ours = with(p.ours, "schema", p.topic, "shards", fmt.Sprint(p.lanes))
	p.clean = func(ctx context.Context) error { return exec(ctx, "DROP SCHEMA "+p.topic+" CASCADE") }
	return exec(ctx, "CREATE SCHEMA "+p.topic)
}

// mysqlDB opens the database with database/sql.
func (p *place) mysqlDB() (*stdsql.DB, error) {
	u, err := url.Parse(p.url)
	if err != nil {
		return nil, err
	}
	c := mysql.NewConfig()
	c.Net, c.Addr, c.DBName = "tcp", u.Host, strings.TrimPrefix(u.Path, "/")
	c.User = u.User.Username()
	c.Passwd, _ = u.User.Password()
	c.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, err
	}
	db := stdsql.OpenDB(connector)
	db.SetMaxOpenConns(32)
	db.SetMaxIdleConns(32)
	return db, nil
}

// cleanMySQL drops the tables that have the topic in their name, which is how all sides name
// theirs.
func (p *place) cleanMySQL(ctx context.Context) error {
	db, err := p.mysqlDB()
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name LIKE ?",
		"%"+strings.ReplaceAll(p.topic, "_", `\_`)+"%")
	if err != nil {
		return err
	}
	defer rows.Close()
	var tables []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		tables = append(tables, "`"+name+"`")
	}
	if err := rows.Err(); err != nil || len(tables) == 0 {
		return err
	}
	_, err = db.ExecContext(ctx, "DROP TABLE "+strings.Join(tables, ", "))
	return err
}

// onSQLite gives the round a file in the directory of temporary files, which must be on a disk for
// the figures to mean anything.
func (p *place) onSQLite() error {
	dir, err := os.MkdirTemp("", p.topic)
	if err != nil {
		return err
	}
	p.url = filepath.Join(dir, "bus.db")
	p.ours = with("sqlite://"+p.url, "shards", fmt.Sprint(p.lanes))
	p.clean = func(context.Context) error { return os.RemoveAll(dir) }
	return nil
}
