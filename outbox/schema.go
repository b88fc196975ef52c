package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace-go/millrace/bus"
)

// buckets is the number of shares of the messages. It is part of the tables' form.
const buckets = 64

// Schema returns the SQL that creates and updates the tables, for your own migrations: all
// versions, each under a heading with its number.
func Schema(d Dialect, c Config) (string, error) {
	o, err := New(d, c)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i := range o.migrations() {
		fmt.Fprintf(&b, "-- Millrace outbox on %v: version %d\n", d, i+1)
		for _, s := range o.migration(i) {
			b.WriteString(s)
			b.WriteString(";\n")
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// migration returns the statements that lead from version i to the next.
func (o *Outbox) migration(i int) []string {
	var statements []string
	for _, s := range append(o.migrations()[i], fmt.Sprintf("UPDATE {outbox_meta} SET version = %d", i+1)) {
		statements = append(statements, o.sql(s))
	}
	return statements
}

func (o *Outbox) migrations() [][]string {
	switch o.dialect {
	case Postgres:
		return o.postgresMigrations()
	case MySQL:
		return mysqlMigrations
	default:
		return sqliteMigrations
	}
}

// Migrate creates the tables, or brings them to the version of this program. Many processes may
// call it at each start, at once. One exception: if several processes switch a new SQLite file to
// journal_mode(WAL) at the same time, before Migrate, some fail as busy.
func (o *Outbox) Migrate(ctx context.Context, db *sql.DB) (err error) {
	version, err := o.version(ctx, db)
	if err != nil {
		return err
	}
	if version >= len(o.migrations()) {
		return o.checkVersion(version)
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("outbox: migrate: %w", err)
	}
	defer conn.Close()
	var opts *sql.TxOptions
	switch o.dialect {
	case MySQL:
		unlock, err := o.lockMigrations(ctx, conn)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unlock()) }()
	case Postgres: // each statement must see commits made while the first one waited
		opts = &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	case SQLite: // the statements may be repeated, and their transaction has the only write lock
	}
	if version, err = o.version(ctx, conn); err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("outbox: migrate: %w", err)
	}
	defer tx.Rollback()
	if o.dialect == Postgres { // a pooler changes sessions; a session's lock would stay behind
		if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1, 1)", o.lockClass()); err != nil {
			return fmt.Errorf("outbox: lock the migrations: %w", err)
		}
		if version, err = o.version(ctx, tx); err != nil {
			return err
		}
	}
	for ; version < len(o.migrations()); version++ {
		for _, s := range o.migration(version) {
			if _, err := tx.ExecContext(ctx, s); err != nil {
				return fmt.Errorf("outbox: migrate the tables %s* to version %d: %w", o.prefix, version+1, err)
			}
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("outbox: migrate: %w", err)
	}
	return nil
}

// lockMigrations keeps other processes' migrations away on MySQL. There a transaction ends with
// each statement that changes a table.
func (o *Outbox) lockMigrations(ctx context.Context, conn *sql.Conn) (unlock func() error, err error) {
	// The server's locks belong to no database, and their names are short.
	name := "SHA2(CONCAT('millrace outbox ', DATABASE(), ' " + o.prefix + "'), 256)"
	var got sql.NullString
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK("+name+", 60)").Scan(&got); err != nil {
		return nil, fmt.Errorf("outbox: lock the migrations: %w", err)
	}
	if got.String != "1" {
		return nil, fmt.Errorf("outbox: lock the migrations: another process had the lock for a minute: %w", context.DeadlineExceeded)
	}
	return func() error {
		_, err := conn.ExecContext(context.WithoutCancel(ctx), "DO RELEASE_LOCK("+name+")")
		return err
	}, nil
}

// lockClass is the first half of the keys of PostgreSQL's advisory locks. It depends on the tables'
// names, so that outboxes in one database do not wait for each other. They do if only the
// search_path tells them apart.
func (o *Outbox) lockClass() int32 {
	h := uint32(2166136261) // FNV-1a
	for _, c := range []byte("millrace outbox " + o.prefix) {
		h = (h ^ uint32(c)) * 16777619
	}
	return int32(h)
}

// querier is a pool, a connection or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// version returns the tables' version, 0 if there are none.
func (o *Outbox) version(ctx context.Context, q querier) (version int, err error) {
	table := o.sql("{outbox_meta}")
	exists := "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = '" + table + "'"
	switch o.dialect {
	case Postgres:
		// Not to_regclass: its answer may come from a cache that is older than the lock of the
		// migrations.
		schema := "ANY (current_schemas(false))"
		if o.config.Schema != "" {
			schema = "'" + o.config.Schema + "'"
		}
		exists = "SELECT COUNT(*) FROM pg_catalog.pg_tables WHERE schemaname = " + schema + " AND tablename = '" + o.config.Prefix + "outbox_meta'"
	case MySQL:
		exists = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '" + table + "'"
	case SQLite:
	}
	var tables int
	if err := q.QueryRowContext(ctx, exists).Scan(&tables); err != nil {
		return 0, fmt.Errorf("outbox: look for the tables: %w", err)
	}
	if tables == 0 {
		return 0, nil
	}
	if err := q.QueryRowContext(ctx, o.sql("SELECT version FROM {outbox_meta}")).Scan(&version); err != nil {
		return 0, fmt.Errorf("outbox: read the tables' version: %w", err)
	}
	return version, nil
}

// name returns this outbox's name in poison stores, which others may use too.
func (o *Outbox) name(ctx context.Context, q querier) (string, error) {
	var id string
	if err := q.QueryRowContext(ctx, o.sql("SELECT id FROM {outbox_meta}")).Scan(&id); err != nil {
		return "", fmt.Errorf("outbox: read the outbox's name: %w", err)
	}
	return "outbox-" + id, nil
}

// explain returns a mistake in the tables if it explains why a call failed, else the call's error.
func (o *Outbox) explain(ctx context.Context, q querier, failed error) error {
	if version, err := o.version(ctx, q); err == nil {
		if err := o.checkVersion(version); err != nil {
			return err
		}
	}
	return failed
}

// checkVersion reports why this program cannot use the tables.
func (o *Outbox) checkVersion(version int) error {
	newest := len(o.migrations())
	switch {
	case version > newest:
		return fmt.Errorf("outbox: %w: the tables %s* have version %d, and this program knows versions up to %d: update the program", bus.ErrUnsupported, o.prefix, version, newest)
	case version < newest:
		return fmt.Errorf("outbox: %w: the tables %s* have version %d (0: there are none), and this program needs %d: call Migrate, or apply what Schema returns", bus.ErrUnsupported, o.prefix, version, newest)
	}
	return nil
}
