package pgxoutbox_test //nolint:testableexamples // needs PostgreSQL and Kafka

import (
	"context"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/pgxoutbox"
	"github.com/millrace-go/millrace/router"
)

type (
	OrderPlaced      struct{ ID, Customer string }
	InvoiceRequested struct{ Order string }
)

// A service on pgx that stores orders and publishes them in one transaction, and handles each
// exactly once in another.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://localhost/shop")
	if err != nil {
		log.Fatal(err)
	}
	b, err := bus.Open(ctx, "kafka://localhost:9092") // with the driver adapters/kafka imported
	if err != nil {
		log.Fatal(err)
	}
	o, err := outbox.New(outbox.Postgres, outbox.Config{})
	if err != nil {
		log.Fatal(err)
	}
	db := stdlib.OpenDBFromPool(pool) // for migrations and the relay
	if err := o.Migrate(ctx, db); err != nil {
		log.Fatal(err)
	}
	begin := pgxoutbox.Pool(pool, pgx.TxOptions{})

	// The order and its event are there together, or neither is.
	order := OrderPlaced{ID: "4711", Customer: "c-1"}
	err = outbox.Do(ctx, o, begin, func(tx pgx.Tx, p bus.Publisher) error {
		if _, err := tx.Exec(ctx, "INSERT INTO orders (id, customer) VALUES ($1, $2)", order.ID, order.Customer); err != nil {
			return err
		}
		return p.Publish(ctx, "orders", order, bus.WithKey(order.Customer))
	})
	if err != nil {
		log.Fatal(err)
	}

	r := router.New(b, "billing")
	r.Handle("orders", outbox.Once(o, begin, func(ctx context.Context, tx pgx.Tx, e OrderPlaced) error {
		if _, err := tx.Exec(ctx, "INSERT INTO invoices (order_id) VALUES ($1)", e.ID); err != nil {
			return err
		}
		return bus.Emit(ctx, "invoices", InvoiceRequested{e.ID})
	}))
	relay, err := o.NewRelay(db, b, outbox.RelayConfig{Listen: pgxoutbox.Listen(pool)})
	if err != nil {
		log.Fatal(err)
	}
	r.Go("relay", relay.Run)
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
}
