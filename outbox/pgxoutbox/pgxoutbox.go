// Package pgxoutbox lets package outbox work in transactions of pgx, and lets a relay hear of
// commits at once.
//
//	err = o.Publish(ctx, pgxoutbox.Tx(tx), "orders", OrderPlaced{ID: 7})           // tx is a pgx.Tx
//
//	h := outbox.Once(o, pgxoutbox.Pool(pool, pgx.TxOptions{}),
//		func(ctx context.Context, tx pgx.Tx, e OrderPlaced) error { … })
//
//	relay, err := o.NewRelay(stdlib.OpenDBFromPool(pool), b, outbox.RelayConfig{Listen: pgxoutbox.Listen(pool)})
package pgxoutbox

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/outbox"
)

// Execer is a transaction of pgx: pgx.Tx, *pgx.Conn, *pgxpool.Conn, *pgxpool.Pool.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Tx adapts a transaction of pgx to the outbox.
func Tx(tx Execer) outbox.Execer {
	if q, ok := tx.(querier); ok {
		return scanner{execer{tx}, q}
	}
	return execer{tx}
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// scanner is an execer that can read rows.
type scanner struct {
	execer
	rows querier
}

// ScanRow implements driver.RowScanner.
func (s scanner) ScanRow(ctx context.Context, query string, args []any, dest ...any) error {
	return s.rows.QueryRow(ctx, query, args...).Scan(dest...)
}

var _ driver.RowScanner = scanner{}

type execer struct{ tx Execer }

// ExecContext implements outbox.Execer.
func (e execer) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	tag, err := e.tx.Exec(ctx, query, args...)
	return result(tag.RowsAffected()), err
}

type result int64

func (r result) RowsAffected() (int64, error) { return int64(r), nil }

func (result) LastInsertId() (int64, error) {
	return 0, errors.New("PostgreSQL has no last insert id")
}

// Pool returns the transactor of a pool, for [outbox.Once] and [outbox.Do].
func Pool(pool *pgxpool.Pool, opts pgx.TxOptions) outbox.Transactor[pgx.Tx] {
	return func(ctx context.Context, f func(pgx.Tx, outbox.Execer) error) error {
		return pgx.BeginTxFunc(ctx, pool, opts, func(tx pgx.Tx) error { return f(tx, Tx(tx)) })
	}
}

// Listen returns a function for [outbox.RelayConfig] that hears of commits in other processes by
// LISTEN. It takes a connection of its own out of the pool, which does not count against the pool's
// bound. It does not work through PgBouncer in transaction mode.
func Listen(pool *pgxpool.Pool) func(ctx context.Context, channel string, ready, heard func()) error {
	return func(ctx context.Context, channel string, ready, heard func()) error {
		pooled, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		conn := pooled.Hijack()
		defer func() {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = conn.Close(closing) // the session ends in any case
		}()
		if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
			return err
		}
		ready()
		for {
			if _, err := conn.WaitForNotification(ctx); err != nil {
				return err
			}
			heard()
		}
	}
}
