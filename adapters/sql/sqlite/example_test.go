package sqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/millrace-go/millrace/adapters/sql/sqlite"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// What a handler emits and the settlement of its message are one transaction of the bus.
func Example_exactlyOnce() {
	ctx, stop := context.WithCancel(context.Background())
	b, err := sqlite.Open(ctx, ":memory:", sqlite.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	r := router.New(b, "billing")
	router.On(r, "orders", func(ctx context.Context, order string) error {
		return bus.Emit(ctx, "payments", "pay "+order)
	}, router.Guarantee(router.ExactlyOnce))
	router.On(r, "payments", func(_ context.Context, payment string) error {
		fmt.Println(payment)
		stop()
		return nil
	})
	if err := b.Publish(ctx, "orders", "o1"); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: pay o1
}

// The bus is in the database of the shop: a handler's rows and the settlement of its message commit
// together.
func Example_onceInBus() {
	folder, err := os.MkdirTemp("", "millrace")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	path := filepath.Join(folder, "shop.db")
	ctx, stop := context.WithCancel(context.Background())
	b, err := sqlite.Open(ctx, path, sqlite.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	db, err := sql.Open("sqlite", path+"?_txlock=immediate&_pragma=busy_timeout(5000)")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE orders (id TEXT)"); err != nil {
		log.Fatal(err)
	}
	r := router.New(b, "shop")
	r.Handle("orders", outbox.OnceInBus(outbox.SQL(db, nil), func(ctx context.Context, tx *sql.Tx, order string) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO orders VALUES (?)", order)
		stop()
		return err
	}))
	if err := b.Publish(ctx, "orders", "o1"); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	var n int
	if err := db.QueryRow("SELECT count(*) FROM orders").Scan(&n); err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "order")
	// Output: 1 order
}
