package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"time"
)

// view is one relay's view of the owners of buckets. Sets of buckets are bits.
type view struct {
	alive  bool   // this relay
	dead   bool   // the lease of some relays has ended
	target uint64 // this relay's part
	owned  uint64 // by this relay
	vacant uint64 // buckets of its part without a live owner
}

// look reads the view.
func (k *keeper) look(ctx context.Context, q querier) (v view, err error) {
	o := k.outbox
	var relays []string
	if err := each(ctx, q, o.sql("SELECT id, CASE WHEN expires < {now} THEN 1 ELSE 0 END FROM {outbox_relay} ORDER BY id"), func(rows *sql.Rows) error {
		var id string
		var dead bool
		err := rows.Scan(&id, &dead)
		if v.dead = v.dead || dead; !dead {
			relays = append(relays, id)
		}
		return err
	}); err != nil {
		return v, err
	}
	rank := slices.Index(relays, k.id)
	if rank < 0 {
		return v, nil
	}
	v.alive = true
	for b := range buckets {
		if b*len(relays)/buckets == rank {
			v.target |= 1 << b
		}
	}
	return v, each(ctx, q, o.sql("SELECT bucket, owner FROM {outbox_bucket}"), func(rows *sql.Rows) error {
		var b int
		var owner sql.NullString
		if err := rows.Scan(&b, &owner); err != nil {
			return err
		}
		switch bit := uint64(1) << b; {
		case owner.String == k.id:
			v.owned |= bit
		case v.target&bit != 0 && !slices.Contains(relays, owner.String):
			v.vacant |= bit
		}
		return nil
	})
}

// move removes dead relays, takes vacant buckets, and gives up the buckets in free that are not the
// relay's part. moved is false if another relay does so now. v is the view afterwards.
func (k *keeper) move(ctx context.Context, v *view, free uint64) (moved bool, err error) {
	return k.exclusively(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, k.outbox.sql("DELETE FROM {outbox_relay} WHERE expires < {now}")); err != nil {
			return err
		}
		now, err := k.look(ctx, tx)
		if err != nil || !now.alive {
			v.alive = now.alive
			return err
		}
		free &= now.owned &^ now.target
		now.owned = now.owned&^free | now.vacant
		if err := errors.Join(k.assign(ctx, tx, now.vacant, &k.id), k.assign(ctx, tx, free, nil)); err != nil {
			return err
		}
		*v = now
		return nil
	})
}

// assign writes an owner into buckets; nil is no owner.
func (k *keeper) assign(ctx context.Context, tx *sql.Tx, set uint64, owner *string) error {
	if set == 0 {
		return nil
	}
	var list []int64
	for ; set != 0; set &= set - 1 {
		list = append(list, int64(bits.TrailingZeros64(set)))
	}
	text, args := k.outbox.integers(list)
	_, err := tx.ExecContext(ctx, k.outbox.sql("UPDATE {outbox_bucket} SET owner = ? WHERE bucket IN "+text), append([]any{owner}, args...)...)
	return err
}

// exclusively runs f in a transaction with the lock of one row: only one such transaction runs at a
// time. It does not wait for that lock; done is false if another relay has it. If this host
// vanishes in the middle, the server ends the transaction.
func (k *keeper) exclusively(ctx context.Context, f func(tx *sql.Tx) error) (done bool, err error) {
	o := k.outbox
	conn, err := k.db.Conn(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	var opts *sql.TxOptions
	if o.dialect != SQLite { // each statement must see earlier commits
		opts = &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	}
	if o.dialect == MySQL {
		restore, err := k.limitSession(ctx, conn)
		if err != nil {
			return false, err
		}
		defer restore()
	}
	tx, err := conn.BeginTx(ctx, opts)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() // does nothing after a commit
	if o.dialect == Postgres {
		limit := strconv.FormatInt(k.patience().Milliseconds(), 10)
		if _, err := tx.ExecContext(ctx, "SELECT set_config('idle_in_transaction_session_timeout', $1, true)", limit); err != nil {
			return false, err
		}
	}
	if o.dialect == SQLite {
		_, err = tx.ExecContext(ctx, o.sql("UPDATE {outbox_meta} SET moves = moves + 1"))
	} else {
		var version int
		err = tx.QueryRowContext(ctx, o.sql("SELECT version FROM {outbox_meta} FOR UPDATE SKIP LOCKED")).Scan(&version)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err == nil {
		err = f(tx)
	}
	if err == nil {
		err = tx.Commit()
	}
	return err == nil, err
}

// limitSession makes MySQL end the connection, and its transaction, after some seconds of silence.
// MySQL has no such limit for a transaction alone. So restore takes the limit back, because the
// connection is the user's.
func (k *keeper) limitSession(ctx context.Context, conn *sql.Conn) (restore func(), err error) {
	var before int64
	if err := conn.QueryRowContext(ctx, "SELECT @@SESSION.wait_timeout").Scan(&before); err != nil {
		return nil, err
	}
	set := func(ctx context.Context, seconds int64) error {
		_, err := conn.ExecContext(ctx, fmt.Sprintf("SET SESSION wait_timeout = %d", seconds))
		return err
	}
	if err := set(ctx, int64((k.patience()+time.Second-1)/time.Second)); err != nil {
		return nil, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.patience())
		defer cancel()
		if set(ctx, before) != nil { // the pool must not get the connection like this: it drops a bad one
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
	}, nil
}
