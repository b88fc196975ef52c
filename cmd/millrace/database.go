package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	mysqlbus "github.com/millrace-go/millrace/adapters/sql/mysql"
	"github.com/millrace-go/millrace/adapters/sql/postgres"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/pgxoutbox"
)

// database is an outbox's database.
type database struct {
	db      *sql.DB
	outbox  *outbox.Outbox
	listen  func(ctx context.Context, channel string, ready, heard func()) error
	closing func()
}

// tables are the flags that choose an outbox in a database.
type tables struct {
	schema, prefix string
	retention      time.Duration // of the inbox; 0 is the default
}

func (t *tables) flags(fs *flag.FlagSet) {
	fs.StringVar(&t.schema, "schema", "", "the `schema` of the tables, on PostgreSQL; by default the search_path decides")
	fs.StringVar(&t.prefix, "prefix", outbox.DefaultPrefix, "the `prefix` of the tables' names")
}

// openDatabase opens the database of a URL such as postgres://…, mysql://… or sqlite:orders.db. Its
// errors never hold the URL's password.
func openDatabase(ctx context.Context, rawURL string, t tables) (d *database, err error) {
	p, err := driver.ParseParams(rawURL)
	if err != nil {
		return nil, err
	}
	d = &database{}
	var dialect outbox.Dialect
	switch scheme := p.URL().Scheme; scheme {
	case "postgres", "postgresql":
		dialect = outbox.Postgres
		err = d.openPostgres(ctx, p)
	case "mysql", "mariadb":
		dialect = outbox.MySQL
		err = d.openMySQL(p)
	case "sqlite":
		dialect = outbox.SQLite
		err = d.openSQLite(p)
	default:
		err = fmt.Errorf("%w: the scheme is %q: want postgres, mysql, mariadb or sqlite", bus.ErrInvalid, scheme)
	}
	if err == nil {
		d.outbox, err = outbox.New(dialect, outbox.Config{Schema: t.schema, Prefix: t.prefix, InboxRetention: t.retention})
	}
	if err == nil {
		err = d.db.PingContext(ctx)
	}
	if err != nil {
		d.close()
		return nil, fmt.Errorf("database %s: %w", p, err)
	}
	return d, nil
}

func (d *database) close() {
	if d.db != nil {
		d.db.Close()
	}
	if d.closing != nil {
		d.closing()
	}
}

// sqliteFile returns the file of an SQLite URL, which must exist: SQLite would create it.
func sqliteFile(p *driver.Params) (path string, err error) {
	path = p.URL().Path
	if p.URL().Opaque != "" {
		if path, err = url.PathUnescape(p.URL().Opaque); err != nil {
			return "", fmt.Errorf("%w: path %q: %w", bus.ErrInvalid, p.URL().Opaque, err)
		}
	}
	if _, err := os.Stat(path); err != nil {
		return "", errors.Unwrap(err)
	}
	return path, nil
}

// openBus opens an existing bus: a wrong name must not create a database.
func openBus(ctx context.Context, rawURL string) (*bus.Bus, error) {
	if p, err := driver.ParseParams(rawURL); err == nil && p.URL().Scheme == "sqlite" {
		if _, err := sqliteFile(p); err != nil {
			return nil, fmt.Errorf("database %s: %w", p, err)
		}
	}
	return bus.Open(ctx, rawURL)
}

// codeOf is the exit code when a bus cannot be opened. It distinguishes a caller's mistake from any
// other failure.
func codeOf(err error) int {
	if errors.Is(err, bus.ErrInvalid) || errors.Is(err, bus.ErrUnsupported) || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOENT) {
		return exitUsage
	}
	return exitFail
}

func (d *database) openPostgres(ctx context.Context, p *driver.Params) error {
	c := postgres.Connection(p)
	if err := p.Err(); err != nil {
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return err
	}
	d.db, d.listen, d.closing = stdlib.OpenDBFromPool(pool), pgxoutbox.Listen(pool), pool.Close
	return nil
}

func (d *database) openMySQL(p *driver.Params) error {
	c := mysqlbus.Connection(p)
	if err := p.Err(); err != nil {
		return err
	}
	c.InterpolateParams = true // one round trip a statement
	c.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return err
	}
	d.db = sql.OpenDB(connector)
	return nil
}

func (d *database) openSQLite(p *driver.Params) error {
	path, err := sqliteFile(p)
	if err == nil {
		err = p.Err()
	}
	if err != nil {
		return err
	}
	d.db, err = sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?_txlock=immediate&_busy_timeout=10000")
	return err
}
