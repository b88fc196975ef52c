// Package dedupsql remembers handled messages in a database, for middleware.Deduplicate. All
// processes of a group share it, and it survives their restarts. It needs database/sql and a driver
// of your choice.
//
//	store, err := dedupsql.New(db, dedupsql.Config{Dialect: dedupsql.Postgres})
//	if err != nil { … }
//	err = store.CreateTable(ctx)
//	r.Use(middleware.Deduplicate(store, nil))
//
// A handler costs one more statement before it and one after it; a batch costs no more than that.
// The store remembers an id after the handler has succeeded, not within the handler's transactions.
package dedupsql

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Config configures a store. A zero field takes its default.
type Config struct {
	// Dialect is the database's dialect. Required.
	Dialect Dialect
	// Table is the table's name, optionally behind a schema: letters, digits, _ and a dot. Defaults
	// to "millrace_dedup".
	Table string
	// TTL is the time for which an id is remembered, by the clocks of the processes. Defaults to 24
	// h.
	TTL time.Duration
}

// Defaults of Config.
const (
	DefaultTable = "millrace_dedup"
	DefaultTTL   = 24 * time.Hour
)

// Store is a middleware.DedupStore in a table. It is safe for concurrent use. The caller keeps and
// closes the pool.
type Store struct {
	db  *sql.DB
	sql statements
	ttl time.Duration
}

var tableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?$`)

// New makes a store. It does not connect to the database; call CreateTable next.
func New(db *sql.DB, c Config) (*Store, error) {
	if c.Table == "" {
		c.Table = DefaultTable
	}
	if c.TTL == 0 {
		c.TTL = DefaultTTL
	}
	var errs []error
	if db == nil {
		errs = append(errs, errors.New("the database is nil"))
	}
	if !tableName.MatchString(c.Table) {
		errs = append(errs, fmt.Errorf("table is %q: want letters, digits and _, after a schema and a dot if need be", c.Table))
	}
	if c.TTL < time.Second {
		errs = append(errs, fmt.Errorf("TTL is %v: want at least 1s", c.TTL))
	}
	s := &Store{db: db, ttl: c.TTL}
	var err error
	if s.sql, err = statementsOf(c.Dialect, c.Table); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("dedupsql: %w: %w", bus.ErrInvalid, errors.Join(errs...))
	}
	return s, nil
}

// Schema returns the statements that create the table and its index, for your own migrations.
func (s *Store) Schema() []string { return slices.Clone(s.sql.create) }

// CreateTable creates the table and its index if they do not exist.
func (s *Store) CreateTable(ctx context.Context) error {
	for _, statement := range s.sql.create {
		if _, err := s.db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("dedupsql: create the table: %w", err)
		}
	}
	return nil
}

// Seen implements middleware.DedupStore.
func (s *Store) Seen(ctx context.Context, scope string, ids []string) ([]bool, error) {
	found := map[string]bool{}
	for some := range slices.Chunk(ids, chunk) {
		args := []any{short(scope), time.Now().UnixMilli()}
		for _, id := range some {
			args = append(args, short(id))
		}
		if err := s.find(ctx, s.sql.seen(len(some)), args, found); err != nil {
			return nil, fmt.Errorf("dedupsql: look for %d ids: %w", len(some), err)
		}
	}
	seen := make([]bool, len(ids))
	for i, id := range ids {
		seen[i] = found[string(short(id))]
	}
	return seen, nil
}

func (s *Store) find(ctx context.Context, query string, args []any, found map[string]bool) error {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return err
		}
		found[string(id)] = true
	}
	return rows.Err()
}

// Remember implements middleware.DedupStore.
func (s *Store) Remember(ctx context.Context, scope string, ids []string) error {
	// Every process writes in one order, so that two statements cannot wait for each other's rows.
	// Each id occurs once: an upsert of PostgreSQL refuses a repeat.
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	until := time.Now().Add(s.ttl).UnixMilli()
	for some := range slices.Chunk(ids, chunk) {
		args := make([]any, 0, 3*len(some))
		for _, id := range some {
			args = append(args, short(scope), short(id), until)
		}
		if _, err := s.db.ExecContext(ctx, s.sql.remember(len(some)), args...); err != nil {
			return fmt.Errorf("dedupsql: remember %d ids: %w", len(some), err)
		}
	}
	return nil
}

// Sweep deletes expired ids, and returns their number. Call it now and then: nothing else makes the
// table smaller. It may run in many processes at once.
func (s *Store) Sweep(ctx context.Context) (removed int64, err error) {
	for {
		res, err := s.db.ExecContext(ctx, s.sql.sweep, time.Now().UnixMilli())
		if err != nil {
			return removed, fmt.Errorf("dedupsql: sweep: %w", err)
		}
		n, err := res.RowsAffected()
		if err != nil {
			return removed, fmt.Errorf("dedupsql: sweep: %w", err)
		}
		if removed += n; n < sweepRows {
			return removed, nil
		}
	}
}

// chunk bounds the ids of one statement: SQLite takes no more than 999 parameters in old versions.
const chunk = 300

// short is the stored form of an id. A long id is stored as its hash, because MySQL's keys are
// bounded.
func short(id string) []byte {
	if len(id) <= 255 {
		return []byte(id)
	}
	sum := sha256.Sum256([]byte(id))
	return append([]byte("\x00sha256:"), sum[:]...)
}
