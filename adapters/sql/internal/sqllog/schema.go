package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace-go/millrace/bus"
)

// Versions of the tables. The driver makes those of topics and groups when it opens, and those of
// event stores when the first store is opened. Until then a program that knows no stores can use
// the tables, too. Afterwards it must not open them: it would write what it publishes to a store's
// topic where nobody reads it.
const (
	versionOfTopics = 2
	versionOfStores = 3
)

// Script returns all migrations as one text, for users that apply them by other means.
func (d *Dialect) Script() string {
	var b strings.Builder
	for i, statements := range d.Migrations {
		fmt.Fprintf(&b, "-- Millrace on %s: version %d", d.Name, i+1)
		if i+1 == versionOfStores {
			b.WriteString(", for event stores only; without it the tables can be used by programs that know no stores")
		}
		b.WriteByte('\n')
		for _, s := range append(statements[:len(statements):len(statements)], setVersion(i+1)) {
			b.WriteString(d.SQL(s))
			b.WriteString(";\n")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func setVersion(n int) string { return fmt.Sprintf("UPDATE {meta} SET version = %d", n) }

// prepare brings the tables to the version that topics and groups need, or checks that they have
// it, and returns the identity of the installation.
func prepare(ctx context.Context, s Store, migrate bool) (install string, err error) {
	version, install, err := upgrade(ctx, s, versionOfTopics, migrate)
	if err != nil {
		return "", err
	}
	if d, newest := s.Dialect(), len(s.Dialect().Migrations); version > newest {
		return "", fmt.Errorf("%w: the tables %s* have version %d, and this program knows versions up to %d: update the program", bus.ErrUnsupported, d.Prefix, version, newest)
	}
	return install, nil
}

// upgrade brings the tables to a version, unless they have it or a later one. It fails with
// [bus.ErrUnsupported] if it must not migrate.
func upgrade(ctx context.Context, s Store, to int, migrate bool) (version int, install string, err error) {
	d := s.Dialect()
	if version, install, err = readMeta(ctx, d, s.DB()); err != nil || version >= to {
		return version, install, err
	}
	if !migrate {
		return 0, "", fmt.Errorf("%w: the tables %s* have version %d (0: there are none), and this program needs %d: apply what Migrations returns, or let the driver do it (migrate=true)", bus.ErrUnsupported, d.Prefix, version, to)
	}
	if err := runMigrations(ctx, s, to); err != nil {
		return 0, "", err
	}
	return readMeta(ctx, d, s.DB())
}

func readMeta(ctx context.Context, d *Dialect, q querier) (version int, install string, err error) {
	var tables int
	if err := q.QueryRowContext(ctx, d.SQL(d.TableExists)).Scan(&tables); err != nil {
		return 0, "", fmt.Errorf("look for the tables: %w", err)
	}
	if tables == 0 {
		return 0, "", nil
	}
	err = q.QueryRowContext(ctx, d.SQL("SELECT version, install FROM {meta}")).Scan(&version, &install)
	if err != nil {
		return 0, "", fmt.Errorf("read the tables' version: %w", err)
	}
	return version, install, nil
}

func lockMigrations(ctx context.Context, d *Dialect, tx *sql.Tx) error {
	if d.Unlock == "" {
		_, err := tx.ExecContext(ctx, d.SQL(d.Lock))
		return err
	}
	var got sql.NullInt64 // a lock that is not bound to the transaction says whether it was had in time
	if err := tx.QueryRowContext(ctx, d.SQL(d.Lock)).Scan(&got); err != nil {
		return err
	}
	if got.Int64 != 1 {
		return errors.New("another process has held the lock for a minute")
	}
	return nil
}

// runMigrations applies the missing migrations up to a version, one process at a time.
func runMigrations(ctx context.Context, s Store, to int) (err error) {
	d := s.Dialect()
	conn, err := s.DB().Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	tx, err := conn.BeginTx(ctx, d.txOptions())
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if d.Lock != "" {
		if err := lockMigrations(ctx, d, tx); err != nil {
			return fmt.Errorf("lock the migrations: %w", err)
		}
	}
	if d.Unlock != "" {
		defer func() {
			_, uerr := conn.ExecContext(context.WithoutCancel(ctx), d.SQL(d.Unlock))
			err = errors.Join(err, uerr)
		}()
	}
	version, _, err := readMeta(ctx, d, tx)
	if err != nil {
		return err
	}
	for ; version < to; version++ {
		statements := d.Migrations[version]
		for _, text := range append(statements[:len(statements):len(statements)], setVersion(version+1)) {
			if _, err := tx.ExecContext(ctx, d.SQL(text)); err != nil {
				return fmt.Errorf("migrate the tables to version %d: %w", version+1, err)
			}
		}
	}
	return tx.Commit()
}
