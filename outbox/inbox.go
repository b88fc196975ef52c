package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// record writes ids into the inbox. It returns which ids were there before, nil if none. Several
// ids go in one statement, which tells how many are new and not which. If not all are new, record
// fails with errRepeats, and the caller begins again one by one. Repeats are rare, so this costs
// less than asking first.
func (o *Outbox) record(ctx context.Context, x Execer, group, topic string, ids []string, oneByOne bool) (repeat []bool, err error) {
	if !oneByOne {
		// In one order everywhere, so that two batches with the same messages do not wait for each
		// other in a circle.
		ids = slices.Sorted(slices.Values(ids))
		for chunk := range slices.Chunk(ids, inboxRows) {
			n, err := o.recordRows(ctx, x, group, topic, chunk)
			if err != nil {
				return nil, err
			}
			if n != int64(len(chunk)) {
				return nil, errRepeats
			}
		}
		return nil, nil
	}
	order := make([]int, len(ids))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		switch {
		case ids[a] < ids[b]:
			return -1
		case ids[a] > ids[b]:
			return 1
		}
		return a - b
	})
	for _, i := range order {
		n, err := o.recordRows(ctx, x, group, topic, ids[i:i+1])
		if err != nil {
			return nil, err
		}
		if n != 1 {
			if repeat == nil {
				repeat = make([]bool, len(ids))
			}
			repeat[i] = true
		}
	}
	return repeat, nil
}

// inboxRows bounds the ids that one statement records: the size of a usual batch, within the bounds
// of all databases.
const inboxRows = 1000

// recordRows returns the number of new ids. On MySQL, if some were not new, the result is larger
// than the number of ids.
func (o *Outbox) recordRows(ctx context.Context, x Execer, group, topic string, ids []string) (int64, error) {
	args := []any{group, topic, ids[0]}
	values := "VALUES (?, ?, ?, {now})"
	ifNew := "ON CONFLICT DO NOTHING"
	if o.dialect == MySQL {
		// Not IGNORE, which would ignore more than repeats. A changed row counts as two. An
		// unchanged row counts as none or one, by a setting of the connection: so the statement
		// changes it.
		ifNew = "ON DUPLICATE KEY UPDATE at = at + 1"
	}
	switch {
	case len(ids) == 1:
	case o.dialect == MySQL:
		values = "VALUES " + rows(len(ids), "(?, ?, ?, {now})")
		for _, id := range ids[1:] {
			args = append(args, group, topic, id)
		}
	default: // one statement to prepare, whatever the number
		list, err := json.Marshal(ids)
		if err != nil {
			return 0, err
		}
		args[2] = string(list)
		if values = "SELECT ?, ?, value, {now} FROM json_each(?) WHERE TRUE"; o.dialect == Postgres {
			values = "SELECT ?, ?, json_array_elements_text(?::json), {now}"
		}
	}
	res, err := x.ExecContext(ctx, o.sql("INSERT INTO {inbox} (grp, topic, id, at) "+values+" "+ifNew), args...)
	if err != nil {
		return 0, fmt.Errorf("outbox: record the message in the inbox: %w", err)
	}
	return res.RowsAffected()
}

// checkID reports why an id cannot be remembered. Databases differ in their treatment of ids that
// no bus would publish.
func checkID(id string) error {
	err := engine.CheckID(id)
	switch {
	case err != nil:
	case driver.IsTransientID(id):
		err = fmt.Errorf("%w: the publisher gave the message no id, and the broker's changes with each delivery", bus.ErrInvalid)
	default:
		return nil
	}
	return bus.Permanent(fmt.Errorf("outbox: once: the message cannot be remembered: %w; publish it with an id of its own (bus.WithID, or the broker's message id)", err))
}

const (
	pruneRows     = 1000
	pruneInterval = time.Minute
)

// pruneDue is true once a minute, when the inbox should be pruned.
func (o *Outbox) pruneDue() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	due := !now.Before(o.prune)
	if due {
		o.prune = now.Add(pruneInterval)
	}
	return due
}

// pruneAgain makes the next call prune too, because more ids are due than one call has time for. So
// ids go at least as fast as they come.
func (o *Outbox) pruneAgain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.prune = time.Time{}
}

// pruneInbox deletes a bounded number of ids older than the retention.
func (o *Outbox) pruneInbox(ctx context.Context, x Execer) (deleted int64, err error) {
	const old = "at < {now} - ?"
	statement := "DELETE FROM {inbox} WHERE " + old + " ORDER BY at LIMIT ?"
	switch o.dialect {
	case Postgres: // several processes may do it at once
		statement = "DELETE FROM {inbox} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {inbox} WHERE " + old + " LIMIT ? FOR UPDATE SKIP LOCKED))"
	case SQLite:
		statement = "DELETE FROM {inbox} WHERE (grp, topic, id) IN (SELECT grp, topic, id FROM {inbox} WHERE " + old + " LIMIT ?)"
	case MySQL:
	}
	res, err := x.ExecContext(ctx, o.sql(statement), o.config.InboxRetention.Microseconds(), pruneRows)
	if err != nil {
		return 0, fmt.Errorf("outbox: prune the inbox: %w", err)
	}
	return res.RowsAffected()
}

// Prune deletes ids older than the retention from the inbox, and returns their number. [Once] does
// the same in small steps, so Prune is for services in which no handler runs. The outbox needs no
// pruning: relays delete sent messages.
func (o *Outbox) Prune(ctx context.Context, db Execer) (deleted int64, err error) {
	for {
		n, err := o.pruneInbox(ctx, db)
		deleted += n
		if err != nil || n < pruneRows {
			return deleted, errors.Join(err, ctx.Err())
		}
	}
}
