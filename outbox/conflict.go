package outbox

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// reruns counts the reruns of a transaction after conflicts with others. A conflict says nothing
// about the message, so the failure policy hears of it only if it goes on.
type reruns struct {
	n     int
	since time.Time // the first one
}

const (
	rerunsMost = 5
	rerunsFor  = 5 * time.Second // a slow database has waited enough by itself
	rerunPause = 10 * time.Millisecond
)

// after pauses, and reports whether to run a transaction that ended with err again.
func (r *reruns) after(ctx context.Context, err error) bool {
	if r.n == 0 {
		r.since = time.Now()
	}
	if !conflict(err) || r.n == rerunsMost || time.Since(r.since) > rerunsFor {
		return false
	}
	r.n++
	pause := time.NewTimer(rand.N(time.Duration(r.n) * rerunPause)) // so that they do not meet again
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// conflict reports whether a transaction failed only because of others: a deadlock, a serialization
// failure, or a wait for a lock that was too long. A handler's mark on the error decides first.
// Drivers for PostgreSQL share a method for it. Drivers for MySQL and SQLite, which are not
// imported, have only their texts.
func conflict(err error) bool {
	if err == nil || bus.IsPermanent(err) || bus.IsIgnored(err) {
		return false
	}
	if e, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err); ok {
		return slices.Contains(conflictStates, e.SQLState())
	}
	text := err.Error()
	return slices.ContainsFunc(conflictTexts, func(s string) bool { return strings.Contains(text, s) })
}

var (
	// A serialization failure, a deadlock, a lock not available in time.
	conflictStates = []string{"40001", "40P01", "55P03"}
	// The same for MySQL. 1020: a row changed since the transaction's snapshot. 3572: a lock was
	// not available at once.
	conflictTexts = []string{"Error 1213 (", "Error 1205 (", "Error 1020 (", "Error 3572 (", "database is locked", "database table is locked"}
)
