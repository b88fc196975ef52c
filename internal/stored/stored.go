// Package stored has the formats that drivers use to keep data at their brokers beside a message:
// the facts of a parked message, the entry of a poisoned message, and due times. The formats are
// JSON, so that people can read them in a broker. Each driver decides how the message itself is
// kept.
//
// Records outlive releases: an older and a newer version of a driver read each other's records. Add
// fields, change none.
package stored

import (
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Facts are kept with a parked message.
type Facts struct {
	Handler   string       `json:"handler,omitempty"`
	Attempt   int          `json:"attempt"`
	FirstSeen time.Time    `json:"firstseen"`
	Failure   *bus.Failure `json:"failure,omitempty"`
}

// FactsOf returns the facts to keep with a delivery that is about to be parked.
func FactsOf(d *bus.Delivery) Facts {
	return Facts{Handler: d.Handler, Attempt: d.Attempt, FirstSeen: d.FirstSeen, Failure: d.Failure}
}

// Fill puts the facts into the delivery of a parked message.
func (f Facts) Fill(d *bus.Delivery) {
	d.Handler, d.Attempt, d.FirstSeen, d.Failure = f.Handler, f.Attempt, f.FirstSeen, f.Failure
}

// Entry is kept with a poisoned message.
type Entry struct {
	Topic    string      `json:"topic"`
	Group    string      `json:"group"`
	Handler  string      `json:"handler"`
	Lane     int32       `json:"lane"`
	Position int64       `json:"position"`
	Waits    bool        `json:"waits,omitempty"`
	Failure  bus.Failure `json:"failure"`
	Host     string      `json:"host"`
	Time     time.Time   `json:"time"`
}

// EntryOf returns the stored form of an entry, without its ID and message.
func EntryOf(e *driver.PoisonEntry) Entry {
	return Entry{
		Topic: e.Topic, Group: e.Group, Handler: e.Handler, Lane: e.Lane, Position: e.Position, Waits: e.Waits,
		Failure: e.Failure, Host: e.Host, Time: e.Time,
	}
}

// Of returns the entry with this id and message.
func (e Entry) Of(id string, m *bus.Message) driver.PoisonEntry {
	return driver.PoisonEntry{
		ID: id, Message: m, Topic: e.Topic, Group: e.Group, Handler: e.Handler, Lane: e.Lane, Position: e.Position,
		Waits: e.Waits, Failure: e.Failure, Host: e.Host, Time: e.Time,
	}
}

// Micros is a due time as it is stored: microseconds since 1970, rounded up, so that no message is
// early. 0 is any time.
func Micros(due time.Time) int64 {
	if due.IsZero() {
		return 0
	}
	return due.Add(time.Microsecond - 1).UnixMicro()
}

// Due reads a number that [Micros] has written. A number below 1 is any time.
func Due(micros int64) time.Time {
	if micros < 1 {
		return time.Time{}
	}
	return time.UnixMicro(micros)
}
