package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// Status describes the contents of an outbox.
type Status struct {
	// Pending counts committed messages that wait for a relay. Oldest is the age of the oldest
	// since it was written, by the database's clock.
	Pending int64
	Oldest  time.Duration
	// Parked counts messages that wait for [Outbox.Retry], because neither the broker nor its
	// poison store takes them.
	Parked int64
	// Relays counts the live relays.
	Relays int
	// Inbox counts the remembered ids of handled messages.
	Inbox int64
}

// Status counts in one query of each table. It is for metrics and for people, not for each message.
func (o *Outbox) Status(ctx context.Context, db *sql.DB) (Status, error) {
	var s Status
	var oldest sql.NullInt64
	var micros int64
	err := db.QueryRowContext(ctx, o.sql("SELECT COUNT(*), MIN(created), {now} FROM {outbox} WHERE parked IS NULL")).Scan(&s.Pending, &oldest, &micros)
	if err == nil && oldest.Valid {
		s.Oldest = max(0, time.Duration(micros-oldest.Int64)*time.Microsecond)
	}
	for _, q := range []struct {
		text string
		into any
	}{
		{"SELECT COUNT(*) FROM {outbox} WHERE parked IS NOT NULL", &s.Parked},
		{"SELECT COUNT(*) FROM {outbox_relay} WHERE expires >= {now}", &s.Relays},
		{"SELECT COUNT(*) FROM {inbox}", &s.Inbox},
	} {
		if err == nil {
			err = db.QueryRowContext(ctx, o.sql(q.text)).Scan(q.into)
		}
	}
	if err != nil {
		return Status{}, o.explain(ctx, db, fmt.Errorf("outbox: status: %w", err))
	}
	return s, nil
}

// Retry puts messages that could not be sent back into the outbox, behind the waiting messages. It
// takes the parked messages and, if from is not nil, this outbox's entries in the poison store of
// that bus. It returns their number. A failure in between repeats a message at worst, under the
// same id.
func (o *Outbox) Retry(ctx context.Context, db *sql.DB, from *bus.Bus) (n int64, err error) {
	if n, err = o.retryParked(ctx, db); err != nil || from == nil {
		return n, err
	}
	name, err := o.name(ctx, db)
	if err != nil {
		return n, err
	}
	store, err := driver.Of(from).Poison(ctx, PoisonGroup)
	if err != nil {
		return n, fmt.Errorf("outbox: retry: %w", err)
	}
	for entry, err := range store.List(ctx) {
		if err == nil && (entry.Handler != name || entry.Failure.Class == driver.Unreadable) {
			continue // of another or an unknown outbox
		}
		if err == nil {
			err = SQL(db, nil)(ctx, func(_ *sql.Tx, x Execer) error {
				return o.PublishMessages(ctx, x, entry.Topic, entry.Message.Clone())
			})
		}
		if err == nil {
			err = store.Remove(ctx, entry.ID)
		}
		if err != nil {
			return n, fmt.Errorf("outbox: retry: %w", err)
		}
		n++
	}
	return n, nil
}

// retryParked gives parked rows new numbers: their keys have gone on meanwhile, and relays do not
// look at old numbers.
func (o *Outbox) retryParked(ctx context.Context, db *sql.DB) (n int64, err error) {
	const kept = "lane, created, time, topic, id, msg_key, " + sqlmessage.Columns
	find := "SELECT seq FROM {outbox} WHERE parked IS NOT NULL ORDER BY seq"
	var opts *sql.TxOptions
	if o.dialect != SQLite { // skip locked rows: they are being written or retried
		find += " FOR UPDATE SKIP LOCKED"
		opts = &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	}
	err = SQL(db, opts)(ctx, func(tx *sql.Tx, _ Execer) error {
		var parked []int64
		if err := each(ctx, tx, o.sql(find), func(rows *sql.Rows) error {
			var seq int64
			err := rows.Scan(&seq)
			parked = append(parked, seq)
			return err
		}); err != nil {
			return err
		}
		if o.dialect == MySQL && len(parked) > 0 { // for the new numbers
			if _, err := tx.ExecContext(ctx, o.sql(lockSlot), 0); err != nil {
				return err
			}
		}
		for chunk := range slices.Chunk(parked, maxSent) {
			list, args := o.integers(chunk)
			if _, err := tx.ExecContext(ctx, o.compile("INSERT INTO {outbox} ("+kept+") SELECT "+kept+" FROM {outbox} WHERE seq IN "+list+" ORDER BY seq"), args...); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, o.compile("DELETE FROM {outbox} WHERE seq IN "+list), args...); err != nil {
				return err
			}
		}
		n = int64(len(parked))
		return nil
	})
	if err != nil {
		return 0, o.explain(ctx, db, fmt.Errorf("outbox: retry: %w", err))
	}
	o.wake()
	return n, nil
}
