package brokers

import (
	"context"
	stdsql "database/sql"
	"errors"
	"time"

	wm "github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/jackc/pgx/v5/stdlib" // database/sql's driver "pgx"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// postgresBatch is how many messages one INSERT has: PostgreSQL takes 65,535 parameters, three a
// message.
const postgresBatch = 1000

// postgresUUID is the length of the default schema's column uuid.
const postgresUUID = 36

func openPostgres(ctx context.Context, p *driver.Params) (driver.Driver, error) {
	u := *p.URL()
	if u.Host == "" {
		p.Fail("want watermill+sql+postgres://user:password@host:5432/database")
	}
	payload := p.Enum("payload", "bytea", "json")
	poll := p.Duration("poll", time.Second, time.Millisecond, time.Minute)
	q := u.Query()
	q.Del("payload")
	q.Del("poll")
	for _, libpq := range []string{"sslmode", "sslrootcert", "sslcert", "sslkey", "connect_timeout", "application_name", "search_path"} {
		_ = p.Text(libpq, "") // the client library reads it; here it is only known
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	u.Scheme, u.RawQuery = "postgres", q.Encode()
	db, err := stdsql.Open("pgx", u.String())
	if err == nil {
		if err = db.PingContext(ctx); err != nil {
			_ = db.Close() // err says why
		}
	}
	if err != nil {
		return nil, &bus.Error{Op: "open", Broker: "watermill-postgres", Err: err, Retryable: true}
	}
	schema := sql.DefaultPostgreSQLSchema{GeneratePayloadType: func(string) string { return payload }}
	offsets := sql.DefaultPostgreSQLOffsetsAdapter{}
	beginner := sql.BeginnerFromStdSQL(db)
	subscriber := func(group string) (message.Subscriber, error) {
		return sql.NewSubscriber(beginner, sql.SubscriberConfig{
			ConsumerGroup: group, SchemaAdapter: schema, OffsetsAdapter: offsets, InitializeSchema: true, PollInterval: poll,
		}, nil)
	}
	pub, err := sql.NewPublisher(beginner, sql.PublisherConfig{SchemaAdapter: schema, AutoInitializeSchema: true}, wm.NopLogger{})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return watermill.Driver(pub, subscriber, watermill.Config{
		Broker: "watermill-postgres", Durable: true, Replay: true, Batch: postgresBatch, UUIDBytes: postgresUUID, Close: db.Close,
		Reader: func() (message.Subscriber, error) {
			group := "millrace-reader-" + bus.NewID()
			sub, err := subscriber(group)
			return &postgresReader{Subscriber: sub, db: db, offsets: offsets, group: group}, err
		},
	}), nil
}

// postgresReader is a subscriber of a group of its own, whose position goes with it.
type postgresReader struct {
	message.Subscriber
	db           *stdsql.DB
	offsets      sql.DefaultPostgreSQLOffsetsAdapter
	group, topic string
}

// Subscribe implements message.Subscriber.
func (r *postgresReader) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	r.topic = topic
	return r.Subscriber.Subscribe(ctx, topic)
}

// Close implements message.Subscriber.
func (r *postgresReader) Close() error {
	err := r.Subscriber.Close()
	if r.topic == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, deleted := r.db.ExecContext(ctx, `DELETE FROM `+r.offsets.MessagesOffsetsTable(r.topic)+` WHERE consumer_group = $1`, r.group)
	return errors.Join(err, deleted)
}
