package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

type OrderPlaced struct {
	ID       int
	Customer string
	Cents    int64
}

// openShop opens a database for an example.
func openShop() (db *sql.DB, o *outbox.Outbox, closeAll func()) {
	folder, err := os.MkdirTemp("", "outbox")
	if err != nil {
		panic(err)
	}
	db, err = sql.Open("sqlite", "file:"+filepath.Join(folder, "shop.db")+"?_txlock=immediate&_busy_timeout=5000&_pragma=journal_mode(WAL)")
	if err != nil {
		panic(err)
	}
	if o, err = outbox.New(outbox.SQLite, outbox.Config{}); err != nil {
		panic(err)
	}
	if err = o.Migrate(context.Background(), db); err != nil {
		panic(err)
	}
	if _, err = db.Exec("CREATE TABLE orders (id INTEGER); CREATE TABLE account (customer TEXT PRIMARY KEY, cents INTEGER)"); err != nil {
		panic(err)
	}
	return db, o, func() {
		db.Close()
		_ = os.RemoveAll(folder)
	}
}

// An order and its event commit together, a relay publishes it, and a handler with a transaction
// counts it once.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	db, o, closeAll := openShop()
	defer closeAll()
	b, err := bus.Open(ctx, "memory:")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()

	r := router.New(b, "billing")
	r.Handle("orders", outbox.Once(o, outbox.SQL(db, nil), func(ctx context.Context, tx *sql.Tx, e OrderPlaced) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO account VALUES (?, ?) ON CONFLICT DO UPDATE SET cents = cents + excluded.cents", e.Customer, e.Cents)
		if err != nil {
			return err
		}
		return bus.Emit(ctx, "paid", e) // a row of the outbox, in tx
	}))
	router.On(r, "paid", func(_ context.Context, e OrderPlaced) error {
		fmt.Println("paid:", e.Cents)
		stop()
		return nil
	})
	relay, err := o.NewRelay(db, b, outbox.RelayConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	r.Go("relay", relay.Run)
	r.Go("shop", func(ctx context.Context) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, "INSERT INTO orders VALUES (7)"); err != nil {
			return err
		}
		if err := o.Publish(ctx, tx, "orders", OrderPlaced{7, "ann", 4200}, bus.WithKey("ann")); err != nil {
			return err
		}
		return tx.Commit()
	})
	if err := r.Run(ctx); err != nil {
		fmt.Println(err)
	}
	// Output: paid: 4200
}

// Code that depends on a bus.Publisher does not know whether it is given a bus or a transaction.
func ExampleOutbox_In() {
	db, o, closeAll := openShop()
	defer closeAll()
	place := func(ctx context.Context, p bus.Publisher, id int) error {
		return p.Publish(ctx, "orders", OrderPlaced{ID: id})
	}
	ctx := context.Background()
	err := outbox.Do(ctx, o, outbox.SQL(db, nil), func(_ *sql.Tx, p bus.Publisher) error {
		return place(ctx, p, 7)
	})
	fmt.Println(err)
	err = outbox.Do(ctx, o, outbox.SQL(db, nil), func(_ *sql.Tx, p bus.Publisher) error {
		if err := place(ctx, p, 8); err != nil {
			return err
		}
		return fmt.Errorf("out of stock")
	})
	fmt.Println(err)
	status, err := o.Status(ctx, db)
	fmt.Println(status.Pending, err)
	// Output:
	// <nil>
	// out of stock
	// 1 <nil>
}
