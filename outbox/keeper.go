package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// keeper holds a relay's share of the buckets. A bucket belongs to the relay that its row names, as long as that relay's
// lease has not ended by the database's clock; the id of a relay is never used again. The share is renewed by renewing the
// one row of the relay.
type keeper struct {
	outbox *Outbox
	db     *sql.DB
	lease  time.Duration

	id string // changes in step only

	mu       sync.Mutex
	joined   bool
	mine     uint64    // buckets that rows may be taken from, as bits
	using    uint64    // buckets of which the relay has rows in hand
	held     uint64    // buckets whose row names this relay: mine, and those on their way to others
	deadline time.Time // when the lease ends at the earliest; a share is worth nothing after it
	term     uint64    // grows whenever buckets come
	losses   int
	changed  chan struct{} // has a value when using has shrunk
	arrived  func()        // called when buckets have come
}

// take returns the buckets to take rows from, which count as used until done.
func (k *keeper) take() (mine, term uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !time.Now().Before(k.deadline) {
		return 0, k.term
	}
	k.using |= k.mine
	return k.mine, k.term
}

// valid returns those of the buckets taken in term that are still held.
func (k *keeper) valid(term uint64) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.term != term || !time.Now().Before(k.deadline) {
		return 0
	}
	return k.held
}

// done says which buckets the relay still has rows of.
func (k *keeper) done(using uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.using = using
	if k.held&^k.mine&^using != 0 {
		select {
		case k.changed <- struct{}{}:
		default:
		}
	}
}

// stepPause is how often a relay looks for others that came or went.
const stepPause = 500 * time.Millisecond

// run keeps the share until ctx ends. It looks often enough for others not to wait long for their part.
func (k *keeper) run(ctx context.Context, failed func(error)) {
	pause := min(k.lease/3, stepPause)
	for {
		if err := k.step(ctx); err != nil && ctx.Err() == nil {
			failed(err)
		}
		wait := pause
		if k.wanting() {
			wait = min(pause, 50*time.Millisecond)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.changed:
		case <-time.After(wait):
		}
	}
}

// wanting says whether there are buckets that others will give to this relay soon, or this one to others.
func (k *keeper) wanting() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held != k.mine
}

// step renews the lease, buries relays that are dead, and moves buckets towards a fair share, in one transaction, of which
// there is one at a time.
func (k *keeper) step(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, max(k.lease/3, time.Second))
	defer cancel()
	k.mu.Lock()
	joined := k.joined
	free := k.held &^ k.mine &^ k.using // what is not mine does not come into use again
	k.mu.Unlock()
	sent := time.Now()
	var alive bool
	var target, owned uint64
	err := k.transact(ctx, func(tx *sql.Tx) (err error) {
		if alive, err = k.renew(ctx, tx, joined); err != nil || !alive {
			return err
		}
		target, owned, err = k.share(ctx, tx, free)
		return err
	})
	if err != nil {
		return fmt.Errorf("outbox: keep the relay's share: %w", err)
	}
	k.mu.Lock()
	if !alive {
		if k.held != 0 {
			k.losses++
		}
		k.id, k.joined, k.mine, k.held = bus.NewID(), false, 0, 0
		k.term++
		k.mu.Unlock()
		return k.step(ctx) // as a new relay
	}
	k.joined, k.deadline = true, sent.Add(k.lease)
	// A bucket that was on its way to another relay, and stays after all, was not read meanwhile: it comes like any other.
	came := owned&^k.held | owned&target&^k.mine
	k.held, k.mine = owned, owned&target
	if came != 0 {
		k.term++
	}
	k.mu.Unlock()
	if came != 0 {
		k.arrived()
	}
	return nil
}

// transact runs f while no other relay moves buckets: they all lock one row first.
func (k *keeper) transact(ctx context.Context, f func(tx *sql.Tx) error) error {
	var opts *sql.TxOptions
	if k.outbox.dialect != SQLite { // each statement must see what was committed while the first one waited
		opts = &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	}
	return SQL(k.db, opts)(ctx, func(tx *sql.Tx, _ Execer) error {
		if _, err := tx.ExecContext(ctx, k.outbox.sql("UPDATE {outbox_meta} SET moves = moves + 1")); err != nil {
			return err
		}
		return f(tx)
	})
}

// renew prolongs the relay's lease, or begins it. alive is false if it had ended and another relay has buried it.
func (k *keeper) renew(ctx context.Context, tx *sql.Tx, joined bool) (alive bool, err error) {
	o, lease := k.outbox, k.lease.Microseconds()
	if !joined { // an attempt whose outcome was not known may have inserted the row
		_, err := tx.ExecContext(ctx, o.sql("{insert} {outbox_relay} (id, expires) VALUES (?, {now} + ?) {ifnew}"), k.id, lease)
		if err != nil {
			return false, err
		}
	}
	if _, err := tx.ExecContext(ctx, o.sql("UPDATE {outbox_relay} SET expires = {now} + ? WHERE id = ?"), lease, k.id); err != nil {
		return false, err
	}
	var n int // asked for, because some databases do not count a row that had the value already
	err = tx.QueryRowContext(ctx, o.sql("SELECT COUNT(*) FROM {outbox_relay} WHERE id = ?"), k.id).Scan(&n)
	return n > 0, err
}

// share gives up the buckets in free, and takes those of the relay's part that nobody has who is alive. It returns the part
// and what the relay owns now.
func (k *keeper) share(ctx context.Context, tx *sql.Tx, free uint64) (target, owned uint64, err error) {
	o := k.outbox
	if _, err := tx.ExecContext(ctx, o.sql("DELETE FROM {outbox_relay} WHERE expires < {now}")); err != nil {
		return 0, 0, err
	}
	var relays []string
	if err := each(ctx, tx, o.sql("SELECT id FROM {outbox_relay} ORDER BY id"), func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		relays = append(relays, id)
		return err
	}); err != nil {
		return 0, 0, err
	}
	rank := slices.Index(relays, k.id)
	for b := range buckets {
		if b*len(relays)/buckets == rank {
			target |= 1 << b
		}
	}
	var taken uint64
	if err := each(ctx, tx, o.sql("SELECT bucket, owner FROM {outbox_bucket}"), func(rows *sql.Rows) error {
		var b int
		var owner sql.NullString
		if err := rows.Scan(&b, &owner); err != nil {
			return err
		}
		switch bit := uint64(1) << b; {
		case owner.String == k.id:
			owned |= bit
		case target&bit != 0 && !slices.Contains(relays, owner.String):
			taken |= bit
		}
		return nil
	}); err != nil {
		return 0, 0, err
	}
	if err := k.assign(ctx, tx, taken, &k.id); err != nil {
		return 0, 0, err
	}
	free &= owned &^ target
	return target, owned&^free | taken, k.assign(ctx, tx, free, nil)
}

// assign writes an owner, or nobody, into buckets.
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

// leave gives everything up at once, which the relay no longer uses.
func (k *keeper) leave(ctx context.Context) error {
	err := k.transact(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, k.outbox.sql("UPDATE {outbox_bucket} SET owner = NULL WHERE owner = ?"), k.id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, k.outbox.sql("DELETE FROM {outbox_relay} WHERE id = ?"), k.id)
		return err
	})
	if err != nil {
		return fmt.Errorf("outbox: give up the relay's share: %w", err)
	}
	return nil
}

// each calls f for each row of a query.
func each(ctx context.Context, q querier, query string, f func(*sql.Rows) error, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
