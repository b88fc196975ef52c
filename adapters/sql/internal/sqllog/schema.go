package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace-go/millrace/bus"
)

// Script returns all migrations as one text, for users that apply them by other means.
func (d *Dialect) Script() string {
	var b strings.Builder
	for i, statements := range d.Migrations {
		fmt.Fprintf(&b, "-- Millrace on %s: version %d\n", d.Name, i+1)
		for _, s := range append(statements[:len(statements):len(statements)], setVersion(i+1)) {
			b.WriteString(d.SQL(s))
			b.WriteString(";\n")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func setVersion(n int) string { return fmt.Sprintf("UPDATE {meta} SET version = %d", n) }

// prepare brings the tables to the newest version, or checks that they have it, and returns the identity of the
// installation.
func prepare(ctx context.Context, s Store, migrate bool) (install string, err error) {
	d := s.Dialect()
	newest := len(d.Migrations)
	version, install, err := readMeta(ctx, d, s.DB())
	if err != nil {
		return "", err
	}
	if version < newest && migrate {
		if err := runMigrations(ctx, s); err != nil {
			return "", err
		}
		if version, install, err = readMeta(ctx, d, s.DB()); err != nil {
			return "", err
		}
	}
	return install, checkVersion(d, version)
}

func checkVersion(d *Dialect, version int) error {
	newest := len(d.Migrations)
	switch {
	case version > newest:
		return fmt.Errorf("%w: the tables %s* have version %d, and this program knows versions up to %d: update the program", bus.ErrUnsupported, d.Prefix, version, newest)
	case version < newest:
		return fmt.Errorf("%w: the tables %s* have version %d (0: there are none), and this program needs %d: apply what Migrations returns, or let the driver do it (migrate=true)", bus.ErrUnsupported, d.Prefix, version, newest)
	}
	return nil
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
		return errors.New("another process has held it for a minute")
	}
	return nil
}

// runMigrations applies the missing migrations, one process at a time.
func runMigrations(ctx context.Context, s Store) (err error) {
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
	for ; version < len(d.Migrations); version++ {
		statements := d.Migrations[version]
		for _, text := range append(statements[:len(statements):len(statements)], setVersion(version+1)) {
			if _, err := tx.ExecContext(ctx, d.SQL(text)); err != nil {
				return fmt.Errorf("migrate the tables to version %d: %w", version+1, err)
			}
		}
	}
	return tx.Commit()
}
