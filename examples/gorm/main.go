// Command gorm publishes and handles messages in transactions of GORM. It is a module of its own,
// so that nobody else compiles GORM.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/glebarez/sqlite"
	"gorm.io/gorm"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// Order is a row of the shop, and its event.
type Order struct {
	ID    int
	Cents int64
}

// Account is the row that the handler keeps.
type Account struct {
	ID    int
	Cents int64
}

// transactor lets the outbox begin transactions of GORM.
func transactor(db *gorm.DB) outbox.Transactor[*gorm.DB] {
	return func(ctx context.Context, f func(*gorm.DB, outbox.Execer) error) error {
		return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return f(tx, tx.Statement.ConnPool) })
	}
}

func main() {
	folder, err := os.MkdirTemp("", "gorm")
	if err == nil {
		err = run(context.Background(), filepath.Join(folder, "shop.db"))
		_ = os.RemoveAll(folder) // of no use any more
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, path string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	db, err := gorm.Open(sqlite.Open(path+"?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)"), &gorm.Config{})
	if err != nil {
		return err
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := db.AutoMigrate(&Order{}, &Account{}); err != nil {
		return err
	}
	if err := db.Create(&Account{ID: 1}).Error; err != nil {
		return err
	}
	o, err := outbox.New(outbox.SQLite, outbox.Config{})
	if err != nil {
		return err
	}
	if err := o.Migrate(ctx, pool); err != nil {
		return err
	}
	b, err := memory.Open(memory.Config{})
	if err != nil {
		return err
	}
	defer b.Close()

	// The order and its event commit together.
	err = db.Transaction(func(tx *gorm.DB) error {
		order := Order{ID: 7, Cents: 4200}
		if err := tx.Create(&order).Error; err != nil {
			return err
		}
		return o.Publish(ctx, tx.Statement.ConnPool, "orders", order)
	})
	if err != nil {
		return err
	}

	// The account counts each order once.
	r := router.New(b, "accounts")
	r.Handle("orders", outbox.Once(o, transactor(db), func(ctx context.Context, tx *gorm.DB, e Order) error {
		err := tx.Model(&Account{ID: 1}).Update("cents", gorm.Expr("cents + ?", e.Cents)).Error
		if err != nil {
			return err
		}
		return bus.OnSuccess(ctx, func(context.Context) error { stop(); return nil })
	}))
	relay, err := o.NewRelay(pool, b, outbox.RelayConfig{})
	if err != nil {
		return err
	}
	r.Go("relay", relay.Run)
	if err := r.Run(ctx); err != nil {
		return err
	}
	var account Account
	if err := db.First(&account, 1).Error; err != nil {
		return err
	}
	fmt.Println("the account has", account.Cents, "cents")
	return nil
}
