package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// openDB makes a DB over the pool. Its statements are prepared as long as prepared statements last.
func (s *store) openDB() *sql.DB {
	db := sql.OpenDB(plainConnector{stdlib.GetPoolConnector(s.pool), s})
	db.SetMaxIdleConns(0) // idle ones belong to the pool
	return db
}

type plainConnector struct {
	driver.Connector
	store *store
}

// Connect implements driver.Connector.
func (c plainConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if pgx, ok := conn.(*stdlib.Conn); err == nil && ok {
		return &plainConn{pgx, c.store}, nil
	}
	return conn, err
}

type plainConn struct {
	*stdlib.Conn
	store *store
}

// ExecContext implements driver.ExecerContext.
func (c *plainConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	r, err := c.Conn.ExecContext(ctx, query, c.args(args))
	c.store.lacksPrepared(err)
	return r, err
}

// QueryContext implements driver.QueryerContext.
func (c *plainConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.Conn.QueryContext(ctx, query, c.args(args))
	c.store.lacksPrepared(err)
	return rows, err
}

// args asks for a statement that is not prepared.
func (c *plainConn) args(args []driver.NamedValue) []driver.NamedValue {
	if !c.store.lost.Load() {
		return args
	}
	return append([]driver.NamedValue{{Value: pgx.QueryExecModeExec}}, args...)
}
