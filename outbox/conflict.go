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

// reruns counts how often a transaction was run again because of others that went on at the same time. That says nothing about the
// message, so the failure policy hears of it only if it goes on.
type reruns struct {
	n     int
	since time.Time // the first one
}

const (
	rerunsMost = 5
	rerunsFor  = 5 * time.Second // where the database itself waits long before it fails, it has waited enough
	rerunPause = 10 * time.Millisecond
)

// after says, after a pause, whether a transaction that ended with err is to be run again.
func (r *reruns) after(ctx context.Context, err error) bool {
	if r.n == 0 {
		r.since = time.Now()
	}
	if !conflict(err) || r.n == rerunsMost || time.Since(r.since) > rerunsFor {
		return false
	}
	r.n++
	pause := time.NewTimer(rand.N(time.Duration(r.n) * rerunPause)) // who met should not meet again
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// conflict says whether a transaction failed only because of others: it was the victim of a deadlock, could not be serialised, or waited
// too long for a lock. What a handler has marked is what it says. Drivers for PostgreSQL have a method for it in common; those for
// MySQL and SQLite, which are not imported, only their texts.
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
	// A serialization failure, a deadlock, a lock that could not be had in time.
	conflictStates = []string{"40001", "40P01", "55P03"}
	// The same of MySQL; 1020 is a row that has changed since the transaction looked, 3572 a lock that could not be had at once.
	conflictTexts = []string{"Error 1213 (", "Error 1205 (", "Error 1020 (", "Error 3572 (", "database is locked", "database table is locked"}
)
