package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

// shop is where orders are taken with -outbox: each goes into the shop's own table and, in the same
// transaction, into the outbox, from where a relay publishes it.
type shop struct {
	db     *sql.DB
	outbox *outbox.Outbox
	run    string

	insert, sum string // statements
}

// openShop opens the database, an SQLite file or a URL, and creates missing tables.
func openShop(ctx context.Context, where, run string) (*shop, error) {
	db, dialect, err := openDatabase(where)
	if err != nil {
		return nil, fmt.Errorf("-outbox: %w", err)
	}
	s := &shop{db: db, run: run, insert: "INSERT INTO orders (run, number, customer, cents) VALUES (?, ?, ?, ?)", sum: "SELECT COUNT(*), COALESCE(SUM(cents), 0) FROM orders WHERE run = ?"}
	if dialect == outbox.Postgres {
		s.insert = "INSERT INTO orders (run, number, customer, cents) VALUES ($1, $2, $3, $4)"
		s.sum = "SELECT COUNT(*), COALESCE(SUM(cents), 0) FROM orders WHERE run = $1"
	}
	if s.outbox, err = outbox.New(dialect, outbox.Config{}, bus.WithSource("/shop")); err == nil {
		err = s.outbox.Migrate(ctx, db)
	}
	if err == nil {
		_, err = db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS orders (run VARCHAR(36), number INTEGER, customer VARCHAR(20), cents BIGINT, PRIMARY KEY (run, number))")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("-outbox: %w", err), db.Close())
	}
	return s, nil
}

func openDatabase(where string) (*sql.DB, outbox.Dialect, error) {
	u, err := url.Parse(where)
	if err != nil || u.Host == "" {
		db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: where}).EscapedPath()+"?_txlock=immediate&_busy_timeout=10000&_pragma=journal_mode(WAL)")
		return db, outbox.SQLite, err
	}
	switch u.Scheme {
	case "postgres":
		db, err := sql.Open("pgx", where)
		return db, outbox.Postgres, err
	case "mysql":
		c := mysql.NewConfig()
		c.Net, c.Addr, c.DBName, c.User = "tcp", u.Host, strings.TrimPrefix(u.Path, "/"), u.User.Username()
		c.Passwd, _ = u.User.Password()
		c.InterpolateParams = true // one round trip a statement
		db, err := sql.Open("mysql", c.FormatDSN())
		return db, outbox.MySQL, err
	}
	return nil, 0, fmt.Errorf("the scheme is %q: want a file, postgres:// or mysql://", u.Scheme)
}

// count returns how many orders of the run were taken, and their value.
func (s *shop) count(ctx context.Context) (n int, cents int64, err error) {
	err = s.db.QueryRowContext(ctx, s.sum, s.run).Scan(&n, &cents)
	return n, cents, err
}

// take takes orders until ctx ends, from the first that the table does not have.
func (s *shop) take(ctx context.Context, topic string, orders []OrderPlaced) error {
	const batch = 100
	// A transaction that has begun is finished, so that a drain leaves no doubt about it.
	whole := context.WithoutCancel(ctx)
	n, _, err := s.count(whole)
	for err == nil && n < len(orders) && ctx.Err() == nil {
		next := orders[n:min(n+batch, len(orders))]
		err = s.transaction(whole, topic, next)
		n += len(next)
	}
	return err
}

func (s *shop) transaction(ctx context.Context, topic string, orders []OrderPlaced) error {
	return outbox.Do(ctx, s.outbox, outbox.SQL(s.db, nil), func(tx *sql.Tx, p bus.Publisher) error {
		insert, err := tx.PrepareContext(ctx, s.insert)
		if err != nil {
			return err
		}
		defer insert.Close()
		for _, o := range orders {
			if _, err := insert.ExecContext(ctx, s.run, o.Number, o.Customer, o.Cents); err != nil {
				return err
			}
		}
		return bus.PublishAll(ctx, p, topic, orders)
	})
}

// differences compares the shop's table with the sums of the events.
func (s *shop) differences(ctx context.Context, b *Books) (diffs []string, err error) {
	n, cents, err := s.count(ctx)
	if err != nil {
		return nil, err
	}
	status, err := s.outbox.Status(ctx, s.db)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if paid := b.Paid.count(); paid != n || b.PaidCents != cents {
		diffs = append(diffs, fmt.Sprintf("the table has %d orders of %d cents, the events have %d of %d", n, cents, paid, b.PaidCents))
	}
	if status.Parked > 0 || status.Pending > 0 {
		diffs = append(diffs, fmt.Sprintf("the outbox still has %d messages, and %d parked", status.Pending, status.Parked))
	}
	return diffs, nil
}

func (s *shop) close() error { return s.db.Close() }
