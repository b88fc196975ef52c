package router

import (
	"errors"
	"fmt"
	"maps"
)

// State is where a handler's subscription is in its life.
type State string

// States of a handler's subscription.
const (
	StateNew      State = "new"      // Run has not been called
	StateStarting State = "starting" // subscribing; Err says why it lasts
	StateRunning  State = "running"
	StatePaused   State = "paused"
	StateDraining State = "draining"
	StateStopped  State = "stopped"
	StateFailed   State = "failed" // ended by an error or by a policy's Stop; Err says which
)

// Health is a moment's state of all handlers.
type Health struct{ Routes []RouteHealth }

// RouteHealth is the state of one handler. InFlight, Lanes, Skipped, Unknown and Err describe its
// subscription, which the handlers of one topic and group share.
type RouteHealth struct {
	Name, Group, Topic string
	State              State
	// InFlight is how many messages are received and not settled, Lanes how many lanes this process owns.
	InFlight, Lanes int
	// Handled, Failed and Poisoned count since Run: messages that succeeded, calls that failed, messages poisoned.
	Handled, Failed, Poisoned uint64
	// Skipped counts messages of the subscription that were settled unhandled, because [Skip] or
	// [SkipUnknown] says so. SkippedTypes counts them by type, for the first 100 types.
	Skipped      uint64
	SkippedTypes map[string]uint64
	// Unknown counts messages of the subscription that went to the poison queue because no handler
	// takes their type. No handler's Poisoned counts them.
	Unknown uint64
	// LastError is the last error of the handler.
	LastError error
	// Err says why the subscription does not work now; nil if it works.
	Err error
}

// Err is nil if every handler consumes, is paused, or was stopped on purpose; otherwise it says which do not.
func (h Health) Err() error {
	var errs []error
	for _, r := range h.Routes {
		switch {
		case r.Err != nil:
			errs = append(errs, fmt.Errorf("handler %s is %s: %w", r.Name, r.State, r.Err))
		case r.State == StateNew || r.State == StateStarting || r.State == StateDraining:
			errs = append(errs, fmt.Errorf("handler %s is %s", r.Name, r.State))
		}
	}
	return errors.Join(errs...)
}

// Health tells how the handlers are. It does not ask the broker.
func (r *Router) Health() Health {
	var h Health
	for _, route := range r.Routes() {
		h.Routes = append(h.Routes, route.Health())
	}
	return h
}

// Health tells how the handler is.
func (r *Route) Health() RouteHealth {
	h := RouteHealth{
		Name: r.name, Group: r.group, Topic: r.topic, State: StateNew,
		Handled: r.handled.Load(), Failed: r.failed.Load(), Poisoned: r.poisoned.Load(),
	}
	if err := r.lastError.Load(); err != nil {
		h.LastError = *err
	}
	c := r.consumer.Load()
	if c == nil {
		return h
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.State, h.Err, h.InFlight, h.Lanes, h.Skipped = c.state, c.err, c.flight.messages, len(c.lanes), c.skipping.n
	h.SkippedTypes, h.Unknown = maps.Clone(c.skipping.byType), c.unknown.Load()
	if err := c.poisoning.trouble.all(); err != nil && h.State != StateStopped {
		h.Err = errors.Join(h.Err, err)
	}
	if h.State == StateRunning && c.paused {
		h.State = StatePaused
	}
	return h
}

func (c *consumer) stateNow() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}
