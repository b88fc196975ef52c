package outbox

import (
	"context"
	"database/sql"
	"strconv"
	"strings"
	"time"
)

// floor knows a number: the table has no row for this relay below it, and never will. Claims begin
// there, so that they do not pass over all deleted rows while a long transaction keeps the database
// from cleaning up. It makes claims cheaper and nothing else: without it, as on SQLite, they begin
// at 0.
//
// Every writer that draws a number holds a shared lock until the end of its transaction. Take the
// holders at the moment when n was the last number. Once they have released the lock, every row up
// to n is visible or never will be, whatever other transactions do.
//
// On PostgreSQL the lock is an advisory lock, and everybody may see its holders. On MySQL it is the
// lock of one row of outbox_fence, chosen at random. There a relay sees that the lock is held, but
// not by which transaction. So it waits for a moment in which the lock is free.
type floor struct {
	low     int64 // the number
	high    int64 // every row up to here is visible
	next    int64 // high, once holders are gone
	holders map[string]struct{}
	active  bool  // rows have come since next was read
	seen    int64 // the newest row that has come
	stepped time.Time
	whole   time.Time     // when the last claim that began at 0 began
	cost    time.Duration // of that claim
	zero    bool          // this claim begins at 0
}

const (
	floorPause = 100 * time.Millisecond
	// wholePause is the interval at which a claim begins at 0 all the same, in case somebody sets
	// the numbers back by hand.
	wholePause = 10 * time.Second
)

func (f *floor) reset() { *f = floor{} }

// lowest is the number at which the claim begins.
func (f *floor) lowest() int64 {
	if f.zero {
		return 0
	}
	return f.low
}

// step moves high on. Call it before the statement of a claim: the claim's snapshot is then newer.
func (f *floor) step(ctx context.Context, r *Relay) error {
	now := time.Now()
	if f.zero = now.Sub(f.whole) > max(wholePause, 50*f.cost); f.zero {
		f.whole = now
	}
	if r.outbox.dialect == SQLite || now.Sub(f.stepped) < floorPause || f.holders == nil && !f.active {
		return nil
	}
	f.stepped = now
	if f.holders == nil {
		f.active = false
		drawn, err := r.drawn(ctx)
		if err != nil {
			return err
		}
		f.next = max(f.seen, drawn)
		f.holders = map[string]struct{}{}
		return r.holders(ctx, func(id string) { f.holders[id] = struct{}{} })
	}
	still := map[string]struct{}{}
	if err := r.holders(ctx, func(id string) {
		// After a restart of the server a prepared transaction has another name here; in old
		// versions, at once.
		if _, ok := f.holders[id]; ok || strings.HasPrefix(id, preparedHolder) {
			still[id] = struct{}{}
		}
	}); err != nil {
		return err
	}
	if f.holders = still; len(still) == 0 {
		f.high, f.holders = f.next, nil
	}
	return nil
}

// preparedHolder begins the names that PostgreSQL gives to prepared transactions in pg_locks.
const preparedHolder = "-1/"

// drawn returns a number in use, the newest if the database tells it.
func (r *Relay) drawn(ctx context.Context) (n int64, err error) {
	text := "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {outbox_seq}"
	if r.outbox.dialect == MySQL { // it may be out of date, by information_schema_stats_expiry
		text = "SELECT COALESCE(MAX(auto_increment), 1) - 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '{outbox}'"
	}
	err = r.db.QueryRowContext(ctx, r.outbox.sql(text)).Scan(&n)
	return n, err
}

// holders calls f for each open transaction that has drawn a number; on MySQL, for the row that it
// has locked.
func (r *Relay) holders(ctx context.Context, f func(id string)) error {
	if r.outbox.dialect == MySQL {
		return r.heldSlots(ctx, f)
	}
	const text = `SELECT virtualtransaction FROM pg_locks WHERE locktype = 'advisory' AND classid = (?::int8 & 4294967295)::oid AND objid = 0::oid AND objsubid = 2
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	return each(ctx, r.db, r.outbox.sql(text), func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		f(id)
		return err
	}, int64(r.outbox.lockClass()))
}

// heldSlots finds the held rows by locking all free ones, only for the length of the statement. It
// waits for nobody.
func (r *Relay) heldSlots(ctx context.Context, f func(id string)) error {
	var free [fenceSlots]bool
	err := each(ctx, r.db, r.outbox.sql("SELECT slot FROM {outbox_fence} FOR UPDATE SKIP LOCKED"), func(rows *sql.Rows) error {
		var slot int
		err := rows.Scan(&slot)
		if err == nil && slot < len(free) {
			free[slot] = true
		}
		return err
	})
	for slot := range free {
		if !free[slot] {
			f(strconv.Itoa(slot))
		}
	}
	return err
}

// fenceSlots is the number of rows in outbox_fence: more than the usual number of transactions that
// publish at the same time, so that each row is free again and again.
const fenceSlots = 64

// lockSlot locks a random slot on MySQL. A transaction runs it before it draws a number.
const lockSlot = "SELECT 0 FROM {outbox_fence} WHERE slot = ? LOCK IN SHARE MODE"

// read takes the result of a claim over all lanes, and moves the floor on.
func (f *floor) read(rows []row, limit int, took time.Duration) {
	if f.zero {
		f.cost = took
	}
	switch {
	case len(rows) > 0:
		f.low = max(f.low, min(f.high, rows[0].seq-1))
		if f.zero { // numbers were set back
			f.low = min(f.low, rows[0].seq-1)
		}
	case limit > 0:
		f.low = max(f.low, f.high)
	}
}
