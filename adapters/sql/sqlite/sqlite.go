// Package sqlite is a bus in an SQLite file: for services that want durable messages and have no
// server, on one machine, in one process or several. The engine is shared with the other SQL
// drivers; the library is modernc.org/sqlite, which needs no C compiler.
//
// # URLs
//
//	sqlite:orders.db            a file, relative to the working directory; it is created if need be
//	sqlite:///var/lib/x/bus.db  the same with an absolute path; so is sqlite:/var/lib/x/bus.db
//	sqlite::memory:             a database in memory, of its own for each Open
//
// Characters such as % ? # in the path are percent-encoded. Parameters:
//
//	synchronous=full            full: a commit is on the disk before publishing returns. normal: it is written to the file
//	                            only, so a crash of the process loses nothing, but one of the machine may lose the messages
//	                            published or settled in the seconds before, and keeps the file intact
//	shards=16                   lanes of topics that this bus creates (1 to 256); those that exist keep theirs
//	lease=10s                   how long the lanes of a process that died stay its own (500ms to 10m)
//	poll=250ms                  longest pause between looks for messages of other processes (2ms to 1m)
//	commit=10ms                 how long settling gathers before it is written (1ms to 1s)
//	retention=0s                delete messages that are older and that every group has finished; 0s keeps all (to 100 years)
//	prefix=millrace_            before the names of the tables
//	migrate=true                create and update the tables; false: only check their version
//
// # Delivery semantics
//
// Published means: committed, in WAL mode and by default with synchronous=FULL, so that it outlives
// a crash of the machine. Concurrent calls share commits. All messages of a topic have one order,
// in which they became visible. Equal keys are handled in this order, also across the processes of
// a group. Messages finished before a crash, up to the commit interval, are not delivered again,
// however far an unfinished message lags behind. Groups may begin at the oldest message, at the
// newest, or at a time, meaning the time of insertion.
//
// Messages of the same process arrive at once, by a signal. Messages of another process arrive at
// its next look, after 2 ms when busy and after the poll interval when idle.
//
// There is one writer at a time. A handler that settles in its own transaction must not publish by
// other means than bus.Emit before it ends: publishing would wait for the handler's own
// transaction.
//
// # Topology
//
// Tables with the prefix: topic, grp, lane, member, poison, parked, meta, and one for the messages
// of each topic, log_1 and so on. [Migrations] prints their definitions. Only one connection
// writes; four read.
//
// The first event store (package eventstore) adds the tables store and snapshot, and brings the
// tables from version 2 to 3; each store has a table for its events, such as event_7. Programs that
// know no event stores cannot open version 3.
//
// # Native client
//
// bus.As[*sql.DB] is the pool of the connections that read; they can write too, and then compete
// with the bus.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func init() { driver.Register("sqlite", fromURL) }

// Config configures a bus. A field that is zero has its default.
type Config struct {
	// Synchronous is "full" or "normal"; see the package's documentation. Defaults to "full". It is
	// of no effect on a pool given to New.
	Synchronous string
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
	// Prefix comes before the names of the tables. Small letters, digits and _. Defaults to
	// "millrace_".
	Prefix string
	// NoMigrate leaves the tables as they are, and only checks their version.
	NoMigrate bool
}

// Defaults of Config.
const (
	DefaultSynchronous = "full"
	DefaultPrefix      = "millrace_"
)

func fromURL(ctx context.Context, p *driver.Params) (driver.Driver, error) {
	u := p.URL()
	path := u.Path
	if u.Opaque != "" {
		var err error
		if path, err = url.PathUnescape(u.Opaque); err != nil {
			p.Fail("path %q: %w", u.Opaque, err)
		}
	}
	if u.Host != "" || u.User != nil || path == "" {
		p.Fail("want sqlite:orders.db, sqlite:///absolute/path.db or sqlite::memory:")
	}
	common := sqllog.FromParams(p)
	c := Config{
		Synchronous: p.Enum("synchronous", DefaultSynchronous, "normal"),
		Prefix:      p.Text("prefix", DefaultPrefix),
	}
	if err := sqllog.CheckIdentifier("parameter \"prefix\"", c.Prefix); err != nil {
		p.Fail("%w", err)
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	return open(ctx, path, c, common)
}

// Open opens a bus in the file at path, or in memory if it is ":memory:". ctx bounds the opening.
func Open(ctx context.Context, path string, c Config, opts ...bus.Option) (*bus.Bus, error) {
	common, err := c.complete()
	if err != nil {
		return nil, err
	}
	d, err := open(ctx, path, c, common)
	if err != nil {
		return nil, err
	}
	return bus.New(d, opts...), nil
}

// New opens a bus over a pool that the caller keeps and closes after the bus. The pool should be
// opened with _txlock=immediate, journal_mode(WAL) and a busy_timeout. Published messages are as
// durable as the pool's synchronous says.
func New(ctx context.Context, db *sql.DB, c Config, opts ...bus.Option) (*bus.Bus, error) {
	common, err := c.complete()
	if err != nil {
		return nil, err
	}
	d, err := newDriver(ctx, &store{write: db, read: db}, c, common)
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
	if c.Synchronous == "" {
		c.Synchronous = DefaultSynchronous
	}
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	common := sqllog.Config{
		Shards: c.Shards, Lease: c.Lease, Poll: c.Poll, Commit: c.Commit, Retention: c.Retention, NoMigrate: c.NoMigrate,
	}
	if err := common.Complete("sqlite"); err != nil {
		return common, err
	}
	if c.Synchronous != "full" && c.Synchronous != "normal" {
		return common, fmt.Errorf("sqlite: %w: Synchronous is %q: want full or normal", bus.ErrInvalid, c.Synchronous)
	}
	if err := sqllog.CheckIdentifier("Prefix", c.Prefix); err != nil {
		return common, fmt.Errorf("sqlite: %w", err)
	}
	return common, nil
}

// busyTimeout is how long a statement waits for another process's transaction before it fails and
// is tried again.
const busyTimeout = 5 * time.Second

// readers is the number of connections that read.
const readers = 4

func open(ctx context.Context, path string, c Config, common sqllog.Config) (*sqllog.Driver, error) {
	s, err := openStore(path, c)
	if err != nil {
		return nil, err
	}
	return newDriver(ctx, s, c, common)
}

func openStore(path string, c Config) (s *store, err error) {
	s = &store{owned: true}
	if s.write, err = pool(path, 1, "synchronous("+c.Synchronous+")", "journal_mode(WAL)"); err != nil {
		return nil, err
	}
	s.read = s.write // a database in memory belongs to its connection
	if path != memoryPath {
		if s.read, err = pool(path, readers, "synchronous("+c.Synchronous+")"); err != nil {
			return nil, errors.Join(err, s.write.Close())
		}
	}
	return s, nil
}

const memoryPath = ":memory:"

func pool(path string, size int, pragmas ...string) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}, "_busy_timeout": {fmt.Sprint(busyTimeout.Milliseconds())}, "_pragma": pragmas}
	name := path
	if path != memoryPath {
		name = "file:" + (&url.URL{Path: path}).EscapedPath()
	}
	db, err := sql.Open("sqlite", name+"?"+q.Encode())
	if err != nil {
		return nil, fmt.Errorf("sqlite: open %q: %w", path, err)
	}
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db, nil
}

func newDriver(ctx context.Context, s *store, c Config, common sqllog.Config) (*sqllog.Driver, error) {
	s.dialect = dialect(c.Prefix)
	s.init()
	file, err := s.file(ctx)
	if err != nil {
		err = &bus.Error{Op: "open", Broker: "sqlite", Err: err, Definite: true, Retryable: s.Fault(err).Retryable}
		return nil, errors.Join(err, s.Close())
	}
	s.dialect.Durable = file != ""
	return sqllog.New(ctx, s, common)
}

// file returns the path of the database, "" if it is in memory. It is the first to open a
// connection: when several processes create a file at once, the switch to WAL fails for some,
// without waiting for the busy timeout.
func (s *store) file(ctx context.Context) (path string, err error) {
	for {
		err = s.write.QueryRowContext(ctx, "SELECT file FROM pragma_database_list WHERE name = 'main'").Scan(&path)
		if code, ok := resultCode(err); !ok || code != sqlite3.SQLITE_BUSY {
			return path, err
		}
		select {
		case <-time.After(rand.N(20 * time.Millisecond)):
		case <-ctx.Done():
			return "", err
		}
	}
}
