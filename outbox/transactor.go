package outbox

import (
	"context"
	"database/sql"
)

// Transactor runs f in a transaction of the user's library: it begins one, calls f with it, commits if f returns nil, and
// rolls back if f fails or panics. Execer is the same transaction as the outbox uses it. f is called once. [SQL] makes one
// for database/sql; for GORM it is
//
//	func(ctx context.Context, f func(*gorm.DB, outbox.Execer) error) error {
//		return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return f(tx, tx.Statement.ConnPool) })
//	}
type Transactor[Tx any] func(ctx context.Context, f func(tx Tx, x Execer) error) error

// transact calls begin. What f returned counts, also if begin does not return it.
func transact[Tx any](ctx context.Context, begin Transactor[Tx], f func(tx Tx, x Execer) error) error {
	var failed error
	err := begin(ctx, func(tx Tx, x Execer) error {
		failed = f(tx, x)
		return failed
	})
	if err == nil {
		return failed
	}
	return err
}

// SQL is the transactor of database/sql. opts may be nil.
func SQL(db *sql.DB, opts *sql.TxOptions) Transactor[*sql.Tx] {
	return func(ctx context.Context, f func(*sql.Tx, Execer) error) error {
		tx, err := db.BeginTx(ctx, opts)
		if err != nil {
			return err
		}
		defer tx.Rollback() // does nothing after a commit
		if err := f(tx, tx); err != nil {
			return err
		}
		return tx.Commit()
	}
}
