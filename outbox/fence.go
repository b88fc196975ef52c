package outbox

import (
	"context"
	"database/sql"
	"time"
)

// fence knows a number below which the table has nothing for this relay, and will not have. Claims begin there, so that they
// do not pass over all that was deleted while some long transaction keeps PostgreSQL from cleaning up. It makes claims
// cheaper and nothing else: without it, as on the other databases, they begin at 0.
//
// Whoever draws a number holds a shared lock until the end of its transaction. So once those that held the lock after
// number n was the last have let go of it, every row up to n is visible or will never be, whatever other transactions do.
type fence struct {
	low     int64 // the floor
	high    int64 // every row up to here is visible
	next    int64 // high, once holders are gone
	holders map[string]struct{}
	active  bool // rows have come since next was read
	stepped time.Time
	whole   time.Time     // when a claim began at 0 last
	cost    time.Duration // of that claim
	zero    bool          // this claim begins at 0
}

const (
	fencePause = 100 * time.Millisecond
	// wholePause is how often a claim begins at 0 all the same, in case that the numbers were set back by hand.
	wholePause = 10 * time.Second
)

func (f *fence) reset() { *f = fence{} }

func (f *fence) floor() int64 {
	if f.zero {
		return 0
	}
	return f.low
}

// step moves high on. It must be called before the statement of a claim, whose snapshot then is newer.
func (f *fence) step(ctx context.Context, r *Relay) error {
	now := time.Now()
	if f.zero = now.Sub(f.whole) > max(wholePause, 50*f.cost); f.zero {
		f.whole = now
	}
	if r.outbox.dialect != Postgres || now.Sub(f.stepped) < fencePause || f.holders == nil && !f.active {
		return nil
	}
	f.stepped = now
	if f.holders == nil {
		f.active = false
		if err := r.db.QueryRowContext(ctx, r.outbox.sql("SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {outbox_seq}")).Scan(&f.next); err != nil {
			return err
		}
		f.holders = map[string]struct{}{}
		return r.holders(ctx, func(id string) { f.holders[id] = struct{}{} })
	}
	still := map[string]struct{}{}
	if err := r.holders(ctx, func(id string) {
		if _, ok := f.holders[id]; ok {
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

// holders calls f for each transaction that has drawn a number and not ended.
func (r *Relay) holders(ctx context.Context, f func(id string)) error {
	const text = `SELECT virtualtransaction FROM pg_locks WHERE locktype = 'advisory' AND classid = (?::int8 & 4294967295)::oid AND objid = 0::oid AND objsubid = 2
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	return each(ctx, r.db, r.outbox.sql(text), func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		f(id)
		return err
	}, int64(r.outbox.lockClass()))
}

// read takes the result of a claim that left out no lane, and moves the floor on.
func (f *fence) read(rows []claimed, limit int, took time.Duration) {
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
