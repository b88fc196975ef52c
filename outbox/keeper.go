package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// keeper holds a relay's share of the buckets. A bucket belongs to the relay in its row until that
// relay's lease ends, by the database's clock. The id of a relay is never used again. Renewing the
// one row of the relay renews the whole share.
type keeper struct {
	outbox *Outbox
	db     *sql.DB
	lease  time.Duration

	id string // changes in step only

	mu       sync.Mutex
	joined   bool
	mine     uint64    // bits: buckets to take rows from
	using    uint64    // buckets with rows in the relay's hand
	held     uint64    // buckets with this relay in their row: mine, and those that move to others
	deadline time.Time // the earliest end of the lease; after it the share is worth nothing
	term     uint64    // grows whenever buckets come
	unmoved  bool      // another relay was moving buckets when this one wanted to
	losses   int
	changed  chan struct{} // has a value when using has shrunk
	arrived  func()        // called when buckets have come
}

// take returns the buckets to take rows from. They count as used until done.
func (k *keeper) take() (mine, term uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !time.Now().Before(k.deadline) {
		return 0, k.term
	}
	k.using |= k.mine
	return k.mine, k.term
}

// valid returns the buckets taken in term that are still held.
func (k *keeper) valid(term uint64) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.term != term || !time.Now().Before(k.deadline) {
		return 0
	}
	return k.held
}

// done sets the buckets with rows in the relay's hand.
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

// stepPause is the pause between two looks for relays that came or went.
const stepPause = 500 * time.Millisecond

// run keeps the share until ctx ends. It looks often, so that other relays do not wait long for
// their part.
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

// wanting reports whether buckets are about to come from other relays, or to go to them.
func (k *keeper) wanting() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held != k.mine || k.unmoved
}

// step renews the lease and, if needed, moves buckets. Renewing waits for nobody: a relay keeps its
// share whatever happens to another relay that moves buckets.
func (k *keeper) step(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, k.patience())
	defer cancel()
	k.mu.Lock()
	joined := k.joined
	free := k.held &^ k.mine &^ k.using // a bucket that is not mine does not come into use again
	k.mu.Unlock()
	sent := time.Now()
	alive, err := k.renew(ctx, joined)
	if err != nil {
		return fmt.Errorf("outbox: renew the relay's lease: %w", err)
	}
	if alive {
		k.mu.Lock()
		k.joined, k.deadline = true, sent.Add(k.lease)
		k.mu.Unlock()
		if alive, err = k.share(ctx, free); err != nil {
			return fmt.Errorf("outbox: keep the relay's share: %w", err)
		}
	}
	if alive {
		return nil
	}
	k.mu.Lock()
	if k.held != 0 {
		k.losses++
	}
	k.id, k.joined, k.mine, k.held = bus.NewID(), false, 0, 0
	k.term++
	k.mu.Unlock()
	return k.step(ctx) // as a new relay
}

// patience bounds a step. It also bounds how long the server lets a transaction that moves buckets
// stand still.
func (k *keeper) patience() time.Duration { return max(k.lease/3, time.Second) }

// renew prolongs the relay's lease, or begins it. alive is false if the lease had ended and another
// relay has removed this one.
func (k *keeper) renew(ctx context.Context, joined bool) (alive bool, err error) {
	o, lease := k.outbox, k.lease.Microseconds()
	if !joined { // an attempt with an unknown outcome may have inserted the row
		_, err := k.db.ExecContext(ctx, o.sql("{insert} {outbox_relay} (id, expires) VALUES (?, {now} + ?) {ifnew}"), k.id, lease)
		if err != nil {
			return false, err
		}
	}
	if _, err := k.db.ExecContext(ctx, o.sql("UPDATE {outbox_relay} SET expires = {now} + ? WHERE id = ?"), lease, k.id); err != nil {
		return false, err
	}
	var n int // a query, because some databases do not count a row that had the value already
	err = k.db.QueryRowContext(ctx, o.sql("SELECT COUNT(*) FROM {outbox_relay} WHERE id = ?"), k.id).Scan(&n)
	return n > 0, err
}

// share reads the owners of the buckets, and moves buckets if the shares are not fair. free are
// buckets that the relay can give up now.
func (k *keeper) share(ctx context.Context, free uint64) (alive bool, err error) {
	v, err := k.look(ctx, k.db)
	if err != nil || !v.alive {
		return v.alive, err
	}
	moved := true
	if v.dead || v.vacant != 0 || free&v.owned&^v.target != 0 {
		if moved, err = k.move(ctx, &v, free); err != nil || !v.alive {
			return v.alive, err
		}
	}
	k.mu.Lock()
	// A bucket on its way to another relay that stays after all was not read meanwhile: it comes
	// like any other.
	came := v.owned&^k.held | v.owned&v.target&^k.mine
	k.held, k.mine, k.unmoved = v.owned, v.owned&v.target, !moved
	if came != 0 {
		k.term++
	}
	k.mu.Unlock()
	if came != 0 {
		k.arrived()
	}
	return true, nil
}

// giveUp gives up at once all buckets that the relay no longer uses.
func (k *keeper) giveUp(ctx context.Context) error {
	for _, text := range []string{"UPDATE {outbox_bucket} SET owner = NULL WHERE owner = ?", "DELETE FROM {outbox_relay} WHERE id = ?"} {
		if _, err := k.db.ExecContext(ctx, k.outbox.sql(text), k.id); err != nil {
			return fmt.Errorf("outbox: give up the relay's share: %w", err)
		}
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
