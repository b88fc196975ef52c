package outbox_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/outbox"
)

// TestMigrateBehindAPooler: no lock stays behind where each transaction has another session of the
// server, as with PgBouncer.
func TestMigrateBehindAPooler(t *testing.T) {
	s := newStore(t, outbox.Postgres)
	s.clean(t)
	s.open(t)
	db := sql.OpenDB(&pooler{s.db.Driver(), s.dsn})
	defer db.Close()
	if err := s.outbox.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	class, err := strconv.ParseInt(strings.TrimPrefix(s.outbox.Channel(), "millrace_outbox_"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.count(t, "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND classid::int8 = ?", class); n > 0 {
		t.Errorf("%d locks are left", n)
	}
}

// pooler gives each transaction, and each statement outside of one, the next of four sessions.
type pooler struct {
	of  driver.Driver
	dsn string
}

// Connect implements driver.Connector.
func (p *pooler) Connect(context.Context) (driver.Conn, error) {
	c := &pooledConn{}
	for i := range c.sessions {
		var err error
		if c.sessions[i], err = p.of.Open(p.dsn); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Driver implements driver.Connector.
func (p *pooler) Driver() driver.Driver { return p.of }

type pooledConn struct {
	sessions [4]driver.Conn
	next     int
	tx       driver.Conn // the session of the transaction that is open
}

func (c *pooledConn) session() driver.Conn {
	if c.tx != nil {
		return c.tx
	}
	c.next++
	return c.sessions[c.next%len(c.sessions)]
}

// Prepare implements driver.Conn.
func (c *pooledConn) Prepare(query string) (driver.Stmt, error) { return c.session().Prepare(query) }

// Begin implements driver.Conn.
func (c *pooledConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// Close implements driver.Conn.
func (c *pooledConn) Close() error {
	for _, s := range c.sessions {
		_ = s.Close()
	}
	return nil
}

func (c *pooledConn) QueryContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Rows, error) {
	return c.session().(driver.QueryerContext).QueryContext(ctx, text, args)
}

func (c *pooledConn) ExecContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	return c.session().(driver.ExecerContext).ExecContext(ctx, text, args)
}

func (c *pooledConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	session := c.session()
	tx, err := session.(driver.ConnBeginTx).BeginTx(ctx, o)
	c.tx = session
	return pooledTx{tx, c}, err
}

type pooledTx struct {
	driver.Tx
	of *pooledConn
}

// Commit implements driver.Tx.
func (t pooledTx) Commit() error {
	t.of.tx = nil
	return t.Tx.Commit()
}

// Rollback implements driver.Tx.
func (t pooledTx) Rollback() error {
	t.of.tx = nil
	return t.Tx.Rollback()
}
