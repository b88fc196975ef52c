// Package postgres is a bus in a PostgreSQL database: an insert-only log in tables, for services
// that have the database anyway. The engine is shared with the other SQL drivers; the library is
// pgx. Tested with PostgreSQL 15, 17 and 18.
//
// # URLs
//
//	postgres://user:password@host:5432/database?sslmode=verify-full
//
// Parameters of the bus:
//
//	schema=millrace             where the tables are; it is created if need be
//	shards=16                   lanes of topics that this bus creates (1 to 256); those that exist keep theirs
//	lease=10s                   how long the lanes of a process that died stay its own (500ms to 10m)
//	poll=250ms                  longest pause between looks for messages, should a notification be missed (2ms to 1m)
//	commit=10ms                 how long settling gathers before it is written (1ms to 1s)
//	retention=0s                delete messages that are older and that every group has finished; 0s keeps all (to 100 years)
//	listen=true                 hear of other processes' messages by LISTEN, on a connection of its own; false: by looking
//	migrate=true                create and update the tables; false: only check their version
//
// passwordfile= names a file with the password, in place of the URL's; it is read for each
// connection. Without sslmode, a server on another machine must prove who it is (verify-full).
//
// Parameters of the connections, as pgx and libpq define them: sslmode, sslrootcert, sslcert,
// sslkey, sslpassword, sslsni, sslnegotiation, channel_binding, connect_timeout, application_name,
// target_session_attrs, passfile, search_path, statement_timeout, default_query_exec_mode,
// pool_max_conns (16 if it is not given), pool_min_conns, pool_max_conn_lifetime,
// pool_max_conn_idle_time, pool_health_check_period.
//
// Two connections more than pool_max_conns keep leases, so that handlers that hold the pool's do
// not cost their process its lanes; one more listens.
//
// Behind PgBouncer in transaction mode: listen=false, and default_query_exec_mode=exec if it is
// older than 1.21 or has prepared statements switched off.
//
// # Delivery semantics
//
// Published means: committed, with the database's synchronous_commit. Concurrent calls share
// commits. In a lane, messages come in the order of their positions, and nothing is skipped,
// however the transactions of several writers overlap. A reader waits for the writers that may
// still bring an earlier position, and for nothing else. Equal keys are handled in the order in
// which they were published, also across the processes of a group. A message whose call returned an
// unknown outcome may follow messages that were published after it: the server still carries out
// the insert that it had received. Messages finished before a crash, up to the commit interval, are
// not delivered again, however far an unfinished message lags behind. The interval is four times as
// long as a commit takes, up to a second, if that is more. Groups may begin at the oldest message,
// at the newest, or at a time, meaning the time of insertion by the database's clock.
//
// After a failover to a replica that lacks the last confirmed writes, members begin again at the
// positions that the replica has. Receive reports it. Give servers a synchronous replica if nothing
// may be lost.
//
// The bus must reach the primary: on a standby, the locks that the order rests on cannot be seen.
//
// # Topology
//
// Tables in the schema: topic, log, grp, lane, member, poison, parked, meta, and the sequence
// log_seq. [Migrations] prints their definitions. Advisory locks are taken with two keys; the first
// is a hash of the schema's name.
//
// The first event store (package eventstore) adds the tables store, event and snapshot, and brings
// the tables from version 2 to 3. Programs that know no event stores cannot open version 3.
//
// # Native client
//
// bus.As[*pgxpool.Pool].
package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func init() {
	driver.Register("postgres", fromURL)
	driver.Register("postgresql", fromURL)
}

// Config configures a bus. A field that is zero has its default.
type Config struct {
	// Schema is where the tables are. Small letters, digits and _. Defaults to "millrace".
	Schema string
	// Shards is the number of lanes of topics that this bus creates: how many processes of a group
	// can share one. 1 to 256. Defaults to 16.
	Shards int
	// Lease is how long the lanes of a process that died stay its own. 500 ms to 10 min. Defaults
	// to 10 s.
	Lease time.Duration
	// Poll is the longest pause between looks for messages, should a notification be missed. 2 ms
	// to 1 min. Defaults to 250 ms.
	Poll time.Duration
	// Commit is how long settling gathers before it is written. 1 ms to 1 s. Defaults to 10 ms.
	Commit time.Duration
	// Retention is the age at which messages are deleted that every group has finished. Defaults to
	// 0: never.
	Retention time.Duration
	// NoListen does without LISTEN, which needs a connection of its own: messages of other
	// processes are then found by looking, at the latest after Poll.
	NoListen bool
	// NoMigrate leaves the tables as they are, and only checks their version.
	NoMigrate bool
}

// Defaults of Config.
const (
	DefaultSchema = "millrace"
	// DefaultPoolSize bounds a pool whose URL does not set a size.
	DefaultPoolSize = 16
)

func fromURL(ctx context.Context, p *driver.Params) (driver.Driver, error) {
	c := Config{Schema: p.Text("schema", DefaultSchema), NoListen: !p.Bool("listen", true)}
	if err := sqllog.CheckIdentifier("parameter \"schema\"", c.Schema); err != nil {
		p.Fail("%w", err)
	}
	common := sqllog.FromParams(p)
	pc := Connection(p)
	if err := p.Err(); err != nil {
		return nil, err
	}
	d, err := open(ctx, pc, c, common)
	if err != nil && p.Text("sslmode", "") == "" {
		err = unproven(err)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Open opens a bus over a pool of its own, made of pc, for which pgxpool.ParseConfig is the usual
// source. ctx bounds the opening.
func Open(ctx context.Context, pc *pgxpool.Config, c Config, opts ...bus.Option) (*bus.Bus, error) {
	common, err := c.complete()
	if err != nil {
		return nil, err
	}
	d, err := open(ctx, pc, c, common)
	if err != nil {
		return nil, err
	}
	return bus.New(d, opts...), nil
}

// New opens a bus over a pool that the caller keeps, and closes after the bus.
func New(ctx context.Context, pool *pgxpool.Pool, c Config, opts ...bus.Option) (*bus.Bus, error) {
	common, err := c.complete()
	if err != nil {
		return nil, err
	}
	d, err := newDriver(ctx, newStore(pool, false, c.Schema), c, common)
	if err != nil {
		return nil, err
	}
	return bus.New(d, opts...), nil
}

// Migrations returns the SQL that creates and updates the tables, for the schema ("" is the
// default).
func Migrations(schema string) (string, error) {
	c := Config{Schema: schema}
	if _, err := c.complete(); err != nil {
		return "", err
	}
	return dialect(c.Schema).Script(), nil
}

func (c *Config) complete() (sqllog.Config, error) {
	if c.Schema == "" {
		c.Schema = DefaultSchema
	}
	common := sqllog.Config{
		Shards: c.Shards, Lease: c.Lease, Poll: c.Poll, Commit: c.Commit, Retention: c.Retention, NoMigrate: c.NoMigrate,
	}
	if err := common.Complete("postgres"); err != nil {
		return common, err
	}
	if err := sqllog.CheckIdentifier("Schema", c.Schema); err != nil {
		return common, fmt.Errorf("postgres: %w", err)
	}
	return common, nil
}

func open(ctx context.Context, pc *pgxpool.Config, c Config, common sqllog.Config) (*sqllog.Driver, error) {
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("postgres: open: %w", err)
	}
	return newDriver(ctx, newStore(pool, true, c.Schema), c, common)
}

func newDriver(ctx context.Context, s *store, c Config, common sqllog.Config) (*sqllog.Driver, error) {
	if s.pool.Config().MaxConns < 2 {
		err := fmt.Errorf("postgres: %w: the pool has one connection: want at least 2, because publishing and reading would wait for each other", bus.ErrInvalid)
		return nil, errors.Join(err, s.Close())
	}
	if c.NoListen {
		return s.opening(sqllog.New(ctx, struct{ sqllog.Store }{s}, common)) // hides Notify and Listen
	}
	return s.opening(sqllog.New(ctx, s, common))
}

// opening notes that the driver is open: the user's rights were enough.
func (s *store) opening(d *sqllog.Driver, err error) (*sqllog.Driver, error) {
	s.opened.Store(err == nil)
	return d, err
}
