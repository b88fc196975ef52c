package sqllog

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/condition"
)

// worker is a goroutine that meets conditions, named by the statement of what does not work.
type worker string

const (
	reading     worker = "messages cannot be read"
	keeping     worker = "the lanes cannot be kept"
	committing  worker = "settlements cannot be committed"
	handingOver worker = "lanes cannot be handed over"
	sweeping    worker = "old messages cannot be deleted"
	listening   worker = "other processes cannot be heard, and new messages are found later"
)

// report tells the observer how a worker fares. The end of the source is no condition.
func (s *Source) report(w worker, err error) {
	if err == nil {
		s.conditions.Report(string(w), "", nil)
		return
	}
	if s.io.Err() != nil || errors.Is(err, context.Canceled) {
		return
	}
	what := string(w)
	if s.driver.store.Fault(err).Disconnected || isDisconnected(err) {
		what = driver.Disconnected
	}
	s.conditions.Report(string(w), what, s.driver.condition(s.topic.name, err))
}

// report tells the observers of all sources how a worker of the driver fares.
func (d *Driver) report(w worker, err error) {
	d.mu.Lock()
	sources := make([]*Source, 0, len(d.sources))
	for s := range d.sources {
		sources = append(sources, s)
	}
	d.mu.Unlock()
	for _, s := range sources {
		s.report(w, err)
	}
}

// condition is the error of a condition. An error for which the server refuses the user does not
// pass by itself, although the driver goes on trying.
func (d *Driver) condition(topic string, err error) error {
	f := d.store.Fault(err)
	return &bus.Error{Op: "receive", Broker: d.dialect.Name, Topic: topic, Err: err, Definite: true, Retryable: f.Retryable && !f.Denied}
}

// isDisconnected says whether a call failed because the database cannot be reached.
func isDisconnected(err error) bool {
	return condition.Unreachable(err) || errors.Is(err, sqldriver.ErrBadConn) || errors.Is(err, sql.ErrConnDone)
}
