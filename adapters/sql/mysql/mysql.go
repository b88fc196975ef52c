// Package mysql is a bus in a MySQL or MariaDB database: an insert-only log in tables, for services
// that have the database anyway. The engine is shared with the other SQL drivers; the library is
// go-sql-driver/mysql. Tested with MariaDB 10.11 and 11.8 and with MySQL 9.7; it needs InnoDB, and
// SKIP LOCKED: MySQL 8.0 or MariaDB 10.6.
//
// # URLs
//
//	mysql://user:password@host:3306/database?tls=true
//	mariadb://user:password@host/database            the same
//
// Parameters:
//
//	prefix=millrace_            before the names of the tables
//	shards=16                   lanes of topics that this bus creates (1 to 256); those that exist keep theirs
//	lease=10s                   how long the lanes of a process that died stay its own (500ms to 10m)
//	poll=250ms                  longest pause between looks for messages of other processes (2ms to 1m)
//	commit=10ms                 how long settling gathers before it is written (1ms to 1s)
//	retention=0s                delete messages that are older and that every group has finished; 0s keeps all (to 100 years)
//	migrate=true                create and update the tables; false: only check their version
//	tls=false                   false, true, skip-verify or preferred
//	ca=, cert=, key=            with tls=true: PEM files of the authorities, in place of the system's, and of the client's
//	                            certificate and key
//	passwordfile=               a file with the password, in place of the URL's; it is read for each connection
//	socket=                     path of a Unix socket, instead of the host
//	connect_timeout=10s         for one connection (100ms to 5m)
//	max_conns=16                connections at the same time (2 to 1000); two more keep leases
//
// The bus sets autocommit=1, wait_timeout=10, innodb_lock_wait_timeout=5 and the isolation level
// READ COMMITTED in its sessions.
//
// # Delivery semantics
//
// Published means: committed, as durable as innodb_flush_log_at_trx_commit makes it (1, the
// default, outlives a crash of the machine). Concurrent calls share commits. The topic's row is
// locked for the length of an insert, so all messages of a topic become visible in one order. Equal
// keys are handled in this order, also across the processes of a group. A message whose call
// returned an unknown outcome may follow messages that were published after it: the server still
// carries out the insert that it had received. Messages finished before a crash, up to the commit
// interval, are not delivered again, however far an unfinished message lags behind. Groups may
// begin at the oldest message, at the newest, or at a time, meaning the time of insertion by the
// database's clock.
//
// Messages of the same process arrive at once, by a signal. Messages of another process arrive at
// its next look, after 2 ms when busy and after the poll interval when idle. A message may be as
// large as seven tenths of the server's max_allowed_packet.
//
// A handler that settles in its own transaction should use READ COMMITTED. With a snapshot of its
// own (REPEATABLE READ), MariaDB from 11.6 on may fail it with error 1020. This happens if another
// message of its lane was settled since it first read; the handler is run again then.
//
// After a failover to a replica that lacks the last confirmed writes, members begin again at the
// positions that the replica has. Receive reports it.
//
// The bus must reach the primary, and one of a Galera cluster at a time.
//
// # Topology
//
// Tables with the prefix: topic, log, grp, lane, member, poison, parked, meta. [Migrations] prints
// their definitions. Messages are numbered by the table's AUTO_INCREMENT, so it must not be
// truncated: groups would take the new messages for finished ones.
//
// The first event store (package eventstore) adds the tables store, event and snapshot, and brings
// the tables from version 2 to 3. Programs that know no event stores cannot open version 3.
//
// # Native client
//
// bus.As[*sql.DB].
package mysql

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func init() {
	driver.Register("mysql", fromURL)
	driver.Register("mariadb", fromURL)
}

// Config configures a bus. A field that is zero has its default.
type Config struct {
	// Prefix comes before the names of the tables. Small letters, digits and _. Defaults to
	// "millrace_".
	Prefix string
	// Shards is the number of lanes of topics that this bus creates: how many processes of a group
	// can share one. 1 to 256. Defaults to 16.
	Shards int
	// Lease is how long the lanes of a process that died stay its own. 500 ms to 10 min. Defaults
	// to 10 s.
	Lease time.Duration
	// Poll is the longest pause between looks for messages that other processes published. 2 ms to
	// 1 min. Defaults to 250 ms.
	Poll time.Duration
	// Commit is how long settling gathers before it is written. 1 ms to 1 s. Defaults to 10 ms.
	Commit time.Duration
	// Retention is the age at which messages are deleted that every group has finished. Defaults to
	// 0: never.
	Retention time.Duration
	// NoMigrate leaves the tables as they are, and only checks their version.
	NoMigrate bool
}

// Defaults of Config and of URLs.
const (
	DefaultPrefix         = "millrace_"
	DefaultConnectTimeout = 10 * time.Second
	DefaultMaxConns       = 16
)

func fromURL(ctx context.Context, p *driver.Params) (driver.Driver, error) {
	c := Config{Prefix: p.Text("prefix", DefaultPrefix)}
	if err := sqllog.CheckIdentifier("parameter \"prefix\"", c.Prefix); err != nil {
		p.Fail("%w", err)
	}
	common := sqllog.FromParams(p)
	size := p.Int("max_conns", DefaultMaxConns, 2, 1000)
	mc := Connection(p)
	if err := p.Err(); err != nil {
		return nil, err
	}
	return open(ctx, mc, size, c, common)
}

// Connection reads the parts of a URL that tell how to connect, for programs that reach the same database
// beside the bus: user, password, host and database, and the parameters passwordfile, socket,
// connect_timeout, tls, ca, cert and key. [driver.Params.Err] has the mistakes.
func Connection(p *driver.Params) *mysql.Config {
	u := p.URL()
	mc := mysql.NewConfig()
	secure(mc, p)
	mc.Timeout = p.Duration("connect_timeout", DefaultConnectTimeout, 100*time.Millisecond, 5*time.Minute)
	mc.Net, mc.Addr = "unix", p.Text("socket", "")
	if mc.Addr == "" {
		mc.Net, mc.Addr = "tcp", u.Host
		if u.Port() == "" {
			mc.Addr = net.JoinHostPort(u.Hostname(), "3306")
		}
	}
	mc.DBName = strings.TrimPrefix(u.Path, "/")
	if mc.DBName == "" || u.Opaque != "" || u.Host == "" && mc.Net == "tcp" {
		p.Fail("want mysql://user:password@host:3306/database")
	}
	mc.User = u.User.Username()
	password := p.Password()
	// It returns no error: an option fails only if it is nil.
	_ = mc.Apply(mysql.BeforeConnect(func(_ context.Context, mc *mysql.Config) (err error) {
		mc.Passwd, err = password()
		return err
	}))
	return mc
}

// secure reads the parameters tls, ca, cert and key.
func secure(mc *mysql.Config, p *driver.Params) {
	mode := p.Enum("tls", "false", "true", "skip-verify", "preferred")
	if mode == "false" || mode == "preferred" { // preferred encrypts if the server can, and checks nothing
		mc.TLSConfig = mode
		p.NoTLS("tls=true")
		return
	}
	mc.TLS = p.TLS()
	mc.TLS.InsecureSkipVerify = mode == "skip-verify"
}

// Open opens a bus over a pool of its own, made of mc, for which mysql.ParseDSN is the usual
// source. ctx bounds the opening.
func Open(ctx context.Context, mc *mysql.Config, c Config, opts ...bus.Option) (*bus.Bus, error) {
	common, err := c.complete()
	if err != nil {
		return nil, err
	}
	d, err := open(ctx, mc.Clone(), DefaultMaxConns, c, common)
	if err != nil {
		return nil, err
	}
	return bus.New(d, opts...), nil
}

// New opens a bus over a pool that the caller keeps, and closes after the bus. It needs two
// connections at least. MaxAllowedPacket should be 0, which asks the server, or the server's value;
// clientFoundRows and interpolateParams save round trips. The pool's sessions must have autocommit.
// Give them wait_timeout=10 (with a shorter ConnMaxIdleTime) and innodb_lock_wait_timeout=5, so
// that the server ends a transaction whose process stands still. Give them the isolation level READ
// COMMITTED, so that statements do not lock rows that they only read. Leases are kept on the same
// pool: give it more connections than handlers hold at a time.
func New(ctx context.Context, db *sql.DB, c Config, opts ...bus.Option) (*bus.Bus, error) {
	common, err := c.complete()
	if err != nil {
		return nil, err
	}
	d, err := newDriver(ctx, &store{db: db, keeper: db}, c, common)
	if err != nil {
		return nil, err
	}
	return bus.New(d, opts...), nil
}

// Migrations returns the SQL that creates and updates the tables, for the prefix ("" is the
// default).
func Migrations(prefix string) (string, error) {
	c := Config{Prefix: prefix}
	if _, err := c.complete(); err != nil {
		return "", err
	}
	return dialect(c.Prefix).Script(), nil
}

func (c *Config) complete() (sqllog.Config, error) {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	common := sqllog.Config{
		Shards: c.Shards, Lease: c.Lease, Poll: c.Poll, Commit: c.Commit, Retention: c.Retention, NoMigrate: c.NoMigrate,
	}
	if err := common.Complete("mysql"); err != nil {
		return common, err
	}
	if err := sqllog.CheckIdentifier("Prefix", c.Prefix); err != nil {
		return common, fmt.Errorf("mysql: %w", err)
	}
	return common, nil
}

// maxLifetime is shorter than the time that servers and proxies allow a connection to be idle.
const maxLifetime = 3 * time.Minute

func open(ctx context.Context, mc *mysql.Config, size int, c Config, common sqllog.Config) (*sqllog.Driver, error) {
	mc.ClientFoundRows = true   // an update that changes nothing is told from one that finds nothing
	mc.InterpolateParams = true // one round trip a statement
	mc.MaxAllowedPacket = 0     // as the server says
	mc.Logger = &mysql.NopLogger{}
	mc.Params = maps.Clone(mc.Params)
	if mc.Params == nil {
		mc.Params = map[string]string{}
	}
	for name, value := range session {
		mc.Params[name] = value
	}
	plain, err := mysql.NewConnector(mc)
	if err != nil {
		return nil, fmt.Errorf("mysql: open: %w", err)
	}
	connector := connector{plain}
	s := &store{db: sql.OpenDB(connector), keeper: sql.OpenDB(connector), owned: true}
	for db, n := range map[*sql.DB]int{s.db: size, s.keeper: keeperConns} {
		db.SetMaxOpenConns(n)
		db.SetMaxIdleConns(n)
		db.SetConnMaxLifetime(maxLifetime)
		db.SetConnMaxIdleTime(maxIdle)
	}
	return newDriver(ctx, s, c, common)
}

// connector makes sessions in which a statement locks the rows it changes, and not those it only
// reads.
type connector struct{ sqldriver.Connector }

// Connect implements sqldriver.Connector.
func (c connector) Connect(ctx context.Context) (sqldriver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if x, ok := conn.(sqldriver.ExecerContext); ok { // the names of the variable differ
		_, err = x.ExecContext(ctx, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", nil)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// keeperConns is the number of connections that keep leases, beside those of max_conns. A
// connection that hangs must not hold up the other.
const keeperConns = 2

// session is the setup of each connection. The server ends a transaction whose process stands still
// or has vanished, because others wait for its locks. A statement that was given up does not wait
// for its lock for long.
var session = map[string]string{"autocommit": "1", "wait_timeout": "10", "innodb_lock_wait_timeout": "5"}

// maxIdle is shorter than wait_timeout.
const maxIdle = 6 * time.Second

func newDriver(ctx context.Context, s *store, c Config, common sqllog.Config) (*sqllog.Driver, error) {
	s.dialect = dialect(c.Prefix)
	s.init()
	if n := s.db.Stats().MaxOpenConnections; n == 1 {
		err := fmt.Errorf("mysql: %w: the pool has one connection: want at least 2, because publishing and reading would wait for each other", bus.ErrInvalid)
		return nil, errors.Join(err, s.Close())
	}
	var autocommit bool
	err := s.db.QueryRowContext(ctx, "SELECT @@autocommit").Scan(&autocommit)
	if err == nil && !autocommit {
		err = fmt.Errorf("mysql: %w: the pool's sessions have autocommit = 0, so nothing that the bus writes would be committed: set it to 1 in the DSN", bus.ErrInvalid)
		return nil, errors.Join(err, s.Close())
	}
	if err == nil {
		s.dialect.MaxMessage, err = maxMessage(ctx, s.db)
	}
	if err != nil {
		err = &bus.Error{Op: "open", Broker: "mysql", Err: err, Definite: true, Retryable: s.Fault(err).Retryable}
		return nil, errors.Join(err, s.Close())
	}
	s.dialect.BatchBytes = min(s.dialect.BatchBytes, s.dialect.MaxMessage/2) // as text, bytes may take twice as many
	return s.opening(sqllog.New(ctx, s, common))
}

// opening notes that the driver is open: the user's rights were enough.
func (s *store) opening(d *sqllog.Driver, err error) (*sqllog.Driver, error) {
	s.opened.Store(err == nil)
	return d, err
}
