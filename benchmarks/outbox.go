package main

import (
	"context"
	stdsql "database/sql"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

// The relay's path: messages are written to PostgreSQL in transactions of 500, and then go to
// Kafka, where a reader counts them. The side that relays also consumes.

// outboxPlace is a place in PostgreSQL and one in Kafka.
func (p *place) onOutbox(ctx context.Context) error {
	target, err := newPlace(ctx, "kafka", 0)
	if err != nil {
		return err
	}
	p.target, p.topic, p.url, p.ours = target, target.topic, brokerURL("postgres"), brokerURL("postgres")
	if err := p.onPostgres(ctx); err != nil {
		return errors.Join(err, target.clean(ctx))
	}
	cleanSchema := p.clean
	p.clean = func(ctx context.Context) error { return errors.Join(cleanSchema(ctx), target.clean(ctx)) }
	return nil
}

// relaying reads the messages that arrive at Kafka while relay runs.
func relaying(ctx context.Context, p *place, l *ledger, relay func(ctx context.Context) error) error {
	reader, err := rawKafka(ctx, p.target)
	if err != nil {
		return err
	}
	defer func() { _ = reader.close() }()
	reading, stop := context.WithCancel(ctx)
	defer stop()
	over := make(chan error, 1)
	go func() { over <- reader.consume(reading, 0, l) }()
	err = relay(ctx)
	stop()
	return errors.Join(err, <-over)
}

// inTransactions calls publish with each call's messages and a transaction of its own.
func inTransactions(ctx context.Context, db *stdsql.DB, l load, publish func(tx *stdsql.Tx, items []item) error) error {
	return l.send(func(items []item) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := publish(tx, items); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	})
}

type millraceOutbox struct {
	place  *place
	db     *stdsql.DB
	outbox *outbox.Outbox
	target *bus.Bus
}

func openMillraceOutbox(ctx context.Context, p *place) (side, error) {
	db, err := stdsql.Open("pgx", p.url)
	if err != nil {
		return nil, err
	}
	o, err := outbox.New(outbox.Postgres, outbox.Config{})
	if err == nil {
		err = o.Migrate(ctx, db)
	}
	var target *bus.Bus
	if err == nil {
		target, err = bus.Open(ctx, p.target.ours)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &millraceOutbox{p, db, o, target}, nil
}

func (s *millraceOutbox) publish(ctx context.Context, l load) error {
	return inTransactions(ctx, s.db, l, func(tx *stdsql.Tx, items []item) error {
		msgs := make([]*bus.Message, len(items))
		for i, it := range items {
			msgs[i] = &bus.Message{Key: it.key, Payload: it.payload}
		}
		return s.outbox.PublishMessages(ctx, tx, s.place.topic, msgs...)
	})
}

func (s *millraceOutbox) consume(ctx context.Context, _ time.Duration, l *ledger) error {
	r, err := s.outbox.NewRelay(s.db, s.target, outbox.RelayConfig{})
	if err != nil {
		return err
	}
	return relaying(ctx, s.place, l, r.Run)
}

func (s *millraceOutbox) close() error { return errors.Join(s.target.Close(), s.db.Close()) }

// watermillOutbox is Watermill's forwarder from its PostgreSQL to its Kafka.
type watermillOutbox struct {
	place  *place
	db     *stdsql.DB
	schema sql.SchemaAdapter
	kafka  *watermillSide
	up     chan struct{}
}

const forwarded = "forwarded"

func openWatermillOutbox(ctx context.Context, p *place) (side, error) {
	target, err := watermillKafka(ctx, p.target)
	if err != nil {
		return nil, err
	}
	db, err := stdsql.Open("pgx", p.url)
	if err != nil {
		return nil, errors.Join(err, target.close())
	}
	bytea := func(string) string { return "BYTEA" }
	return &watermillOutbox{p, db, sql.DefaultPostgreSQLSchema{GeneratePayloadType: bytea}, target.(*watermillSide), make(chan struct{}, 2)}, nil
}

func (s *watermillOutbox) subscriber() (*sql.Subscriber, error) {
	return sql.NewSubscriber(sql.BeginnerFromStdSQL(s.db), sql.SubscriberConfig{
		ConsumerGroup: s.place.topic, SchemaAdapter: s.schema, OffsetsAdapter: sql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
	}, watermill.NopLogger{})
}

func (s *watermillOutbox) publish(ctx context.Context, l load) error {
	sub, err := s.subscriber()
	if err != nil {
		return err
	}
	if err := errors.Join(sub.SubscribeInitialize(forwarded), sub.Close()); err != nil {
		return err
	}
	return inTransactions(ctx, s.db, l, func(tx *stdsql.Tx, items []item) error {
		pub, err := sql.NewPublisher(sql.TxFromStdSQL(tx), sql.PublisherConfig{SchemaAdapter: s.schema}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		msgs := make([]*message.Message, len(items))
		for i, it := range items {
			msgs[i] = message.NewMessage(watermill.NewUUID(), it.payload)
			msgs[i].Metadata.Set(keyMetadata, it.key)
		}
		return forwarder.NewPublisher(pub, forwarder.PublisherConfig{ForwarderTopic: forwarded}).Publish(s.place.topic, msgs...)
	})
}

func (s *watermillOutbox) consume(ctx context.Context, _ time.Duration, l *ledger) error {
	sub, err := s.subscriber()
	if err != nil {
		return err
	}
	f, err := forwarder.NewForwarder(sub, s.kafka.pub, watermill.NopLogger{}, forwarder.Config{ForwarderTopic: forwarded})
	if err != nil {
		return err
	}
	return relaying(ctx, s.place, l, f.Run)
}

func (s *watermillOutbox) close() error { return errors.Join(s.kafka.close(), s.db.Close()) }

// rawOutbox is a table and a loop: read some rows, produce them, delete them. It knows one relay
// only, and that no transaction commits late.
type rawOutbox struct {
	place *place
	conn  *pgx.Conn
	kafka *kafkaSide
}

func openRawOutbox(ctx context.Context, p *place) (side, error) {
	target, err := rawKafka(ctx, p.target)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, p.url)
	if err == nil {
		_, err = conn.Exec(ctx, "CREATE TABLE raw_outbox (id bigserial PRIMARY KEY, key text NOT NULL, payload bytea NOT NULL)")
	}
	if err != nil {
		return nil, errors.Join(err, target.close())
	}
	return &rawOutbox{p, conn, target.(*kafkaSide)}, nil
}

func (s *rawOutbox) publish(ctx context.Context, l load) error {
	l.callers = 1
	return l.send(func(items []item) error {
		_, err := s.conn.CopyFrom(ctx, pgx.Identifier{"raw_outbox"}, []string{"key", "payload"}, pgx.CopyFromSlice(len(items), func(i int) ([]any, error) {
			return []any{items[i].key, items[i].payload}, nil
		}))
		return err
	})
}

func (s *rawOutbox) consume(ctx context.Context, _ time.Duration, l *ledger) error {
	return relaying(ctx, s.place, l, func(ctx context.Context) error {
		for ctx.Err() == nil {
			last, records, err := s.read(ctx)
			if err == nil && len(records) == 0 {
				time.Sleep(lookAgain)
				continue
			}
			if err == nil {
				err = s.kafka.cl.ProduceSync(ctx, records...).FirstErr()
			}
			if err == nil {
				_, err = s.conn.Exec(ctx, "DELETE FROM raw_outbox WHERE id <= $1", last)
			}
			if err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	})
}

func (s *rawOutbox) read(ctx context.Context) (last int64, records []*kgo.Record, err error) {
	rows, err := s.conn.Query(ctx, "SELECT id, key, payload FROM raw_outbox ORDER BY id LIMIT $1", pageRows)
	if err != nil {
		return 0, nil, err
	}
	for rows.Next() {
		r := &kgo.Record{Topic: s.place.topic, Headers: rawHeaders}
		if err := rows.Scan(&last, &r.Key, &r.Value); err != nil {
			return 0, nil, err
		}
		records = append(records, r)
	}
	return last, records, rows.Err()
}

func (s *rawOutbox) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return errors.Join(s.kafka.close(), s.conn.Close(ctx))
}
