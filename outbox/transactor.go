package outbox

import (
	"context"
	"database/sql"
	"errors"
)

// Transactor runs f in a transaction of the user's library. It begins one, calls f with it, commits
// if f returns nil, and rolls back if f fails or panics. Execer is the same transaction for the
// outbox. f is called once.
//
// Transactors are called concurrently. On PostgreSQL [Do] and [Once] also call them after a commit,
// in another goroutine, to tell relays in other processes of new messages. That context has the
// values of the caller's, and an end of its own. [SQL] makes a transactor for database/sql; for
// GORM write
//
//	func(ctx context.Context, f func(*gorm.DB, outbox.Execer) error) error {
//		return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return f(tx, tx.Statement.ConnPool) })
//	}
type Transactor[Tx any] func(ctx context.Context, f func(tx Tx, x Execer) error) error

var errNotRun = errors.New("outbox: the transactor reports success, and the function passed to it did not end")

// run is begin, with a check that f succeeded: a transactor that rolls back may not say why.
func (begin Transactor[Tx]) run(ctx context.Context, f func(tx Tx, x Execer) error) error {
	failed := errNotRun
	err := begin(ctx, func(tx Tx, x Execer) error {
		failed = errNotRun
		failed = f(tx, x)
		return failed
	})
	if err == nil {
		err = failed
	}
	return err
}

// SQL returns the transactor of database/sql. opts may be nil.
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
