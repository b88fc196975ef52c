package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
)

// Driver implements driver.Driver over a store.
type Driver struct {
	store   Store
	dialect *Dialect
	config  Config
	install string
	hub     *hub

	topics    topics
	publisher publisher
	appender  appender
	announcer announcer

	closing chan struct{} // closed when Close begins
	io      context.Context
	stopIO  context.CancelFunc
	work    sync.WaitGroup // listener and sweeper

	mu        sync.Mutex
	isClosed  bool
	listening bool
	calls     sync.WaitGroup // calls of the driver's methods under way
	sources   map[*Source]struct{}
	closed    chan struct{} // closed when Close has ended
	closeErr  error
}

// New opens a driver over a store, which it then owns, also when it fails. It prepares the tables within ctx.
func New(ctx context.Context, s Store, c Config) (*Driver, error) {
	dialect := s.Dialect()
	install, err := prepare(ctx, s, !c.NoMigrate)
	if err != nil && s.Fault(err).Retryable { // a connection that has gone in the pool, say
		install, err = prepare(ctx, s, !c.NoMigrate)
	}
	if err != nil {
		f := s.Fault(err)
		err = &bus.Error{Op: "open", Broker: dialect.Name, Err: err, Definite: true, Retryable: f.Retryable}
		return nil, errors.Join(err, s.Close())
	}
	d := &Driver{
		store: s, dialect: dialect, config: c, install: install, hub: openHub(install),
		closing: make(chan struct{}), closed: make(chan struct{}), sources: map[*Source]struct{}{},
	}
	d.io, d.stopIO = context.WithCancel(context.Background())
	d.topics.init(d)
	d.publisher.init(d)
	d.appender.init(d)
	d.announcer.init(d)
	if c.Retention > 0 {
		d.work.Go(d.sweep)
	}
	return d, nil
}

// Capabilities implements driver.Driver.
func (d *Driver) Capabilities() bus.Capabilities {
	return bus.Capabilities{
		Broker: d.dialect.Name, Durable: d.dialect.Durable, Replay: true, StartAt: true, Parking: true, Transactions: true, MaxMessage: d.dialect.MaxMessage,
	}
}

// As finds a native client, for bus.As.
func (d *Driver) As(target any) bool { return d.store.As(target) }

// Ping implements driver.Pinger.
func (d *Driver) Ping(ctx context.Context) error {
	if !d.enter() {
		return d.fail("ping", "", bus.ErrClosed)
	}
	defer d.calls.Done()
	if err := d.store.DB().PingContext(ctx); err != nil {
		return d.fail("ping", "", err)
	}
	return nil
}

// enter registers a call that Close waits for.
func (d *Driver) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isClosed {
		return false
	}
	d.calls.Add(1)
	return true
}

// fail makes the error of an operation that has not taken place, or can be repeated without harm.
func (d *Driver) fail(op, topic string, err error) error {
	retryable := isPassing(err) || !errors.Is(err, bus.ErrClosed) && d.store.Fault(err).Retryable
	return &bus.Error{Op: op, Broker: d.dialect.Name, Topic: topic, Err: err, Definite: true, Retryable: retryable}
}

// persist repeats do, which must be harmless to repeat, until it succeeds, fails for good, or ctx
// or the driver ends. [bus.ErrUnsupported] is for good.
func (d *Driver) persist(ctx context.Context, do func(context.Context) error) error {
	for b := (backoff.Backoff{}); ; {
		err := do(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, bus.ErrUnsupported) {
			return err
		}
		if fault := d.store.Fault(err); !fault.Retryable || fault.Denied {
			return err
		}
		if !sleep(b.Next(), d.closing, ctx.Done()) {
			return err
		}
	}
}

// Close implements driver.Driver.
func (d *Driver) Close(ctx context.Context) error {
	d.mu.Lock()
	if d.isClosed {
		d.mu.Unlock()
		select {
		case <-d.closed:
			return d.closeErr
		case <-ctx.Done():
			return d.fail("close", "", ctx.Err())
		}
	}
	d.isClosed = true
	close(d.closing)
	var open []*Source
	for s := range d.sources {
		open = append(open, s)
	}
	d.mu.Unlock()

	defer close(d.closed)
	defer d.stopIO()
	defer context.AfterFunc(ctx, d.stopIO)() // calls under way then end soon
	errs := make([]error, len(open))
	var sources sync.WaitGroup
	for i, s := range open {
		sources.Go(func() { errs[i] = s.Close(ctx) })
	}
	sources.Wait()
	d.calls.Wait()
	d.publisher.wait()
	d.appender.wait()
	d.announcer.wait()
	d.stopIO() // the listener waits for ever
	d.work.Wait()
	closeHub(d.install)
	if err := d.store.Close(); err != nil {
		errs = append(errs, d.fail("close", "", err))
	}
	d.closeErr = errors.Join(errs...)
	return d.closeErr
}

// querier is a pool, a connection or a transaction.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func (d *Dialect) txOptions() *sql.TxOptions { return &sql.TxOptions{Isolation: d.Isolation} }

// transact runs do in a transaction. On an error, do may or may not have taken effect if it can be repeated.
func (d *Driver) transact(ctx context.Context, db *sql.DB, do func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, d.dialect.txOptions())
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if guard := d.dialect.Guard; guard != "" {
		if _, err := tx.ExecContext(ctx, d.dialect.SQL(guard)); err != nil {
			return err
		}
	}
	if err := do(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return &uncertainCommit{err}
	}
	return nil
}

// uncertainCommit is the error of a commit: it may have been carried out.
type uncertainCommit struct{ error } //nolint:errname // it says what the outcome is

// Unwrap returns the client library's error.
func (e *uncertainCommit) Unwrap() error { return e.error }

// affected runs a statement and returns how many rows it affected.
func affected(ctx context.Context, q driver.Execer, query string, args ...any) (int64, error) {
	r, err := q.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// exists says whether a query yields a row.
func exists(ctx context.Context, q querier, query string, args ...any) (bool, error) {
	var one int
	err := q.QueryRowContext(ctx, query, args...).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// collect runs a query and calls scan for each row.
func collect(ctx context.Context, q querier, scan func(*sql.Rows) error, query string, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

var errNoTopic = fmt.Errorf("topic: %w", bus.ErrNotFound)
