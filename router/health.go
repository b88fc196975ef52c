package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// State is where a handler's subscription is in its life.
type State string

// States of a handler's subscription.
const (
	StateNew          State = "new"                // Run has not been called
	StateStarting     State = "starting"           // subscribing; Reason says why it lasts
	StateRunning      State = "running"            // consuming its lanes
	StateWaiting      State = "waiting for a lane" // subscribed, and other members own all lanes
	StatePaused       State = "paused"             // by Route.Pause
	StateSuspended    State = "suspended"          // a handler said that something it needs is away (bus.Unavailable)
	StateDisconnected State = "disconnected"       // the broker cannot be reached; the driver goes on trying
	StateDraining     State = "draining"           // stopping: running handlers come to their end
	StateStopped      State = "stopped"            // ended on purpose
	StateFailed       State = "failed"             // ended by an error or by a policy's Stop
)

// Health is a moment's state of all handlers. It is plain data: print it, encode it as JSON, where
// errors are texts, or alert on its fields.
type Health struct {
	Routes []RouteHealth `json:"routes"`
}

// RouteHealth is the state of one handler. The fields from State to Lag describe its subscription,
// which the handlers of one topic and group share, in this process.
type RouteHealth struct {
	Name  string `json:"name"`
	Group string `json:"group"`
	Topic string `json:"topic"`

	// State is since Since what it is, and Reason says why, for people. Both are zero for StateNew;
	// Reason is empty where the state says it all.
	State  State     `json:"state"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Err says what does not work now, in the broker's words; nil if everything works. The log has
	// one WARN when a condition has lasted for a second, and one INFO when it is over. A condition
	// passes by itself if [bus.IsRetryable] says so of its error; otherwise somebody must act.
	Err error `json:"error,omitempty"`
	// Lanes is how many lanes this process owns.
	Lanes int `json:"lanes"`
	// InFlight is how many messages are received and not settled. Held is how many of them wait in
	// this process for their next try.
	InFlight int `json:"inFlight"`
	Held     int `json:"held"`
	// Parked is how many messages of these lanes wait at the broker for a retry, or behind a
	// message that does. Delayed is how many wait there for the time of delivery that their
	// publisher set.
	Parked  int `json:"parked"`
	Delayed int `json:"delayed"`
	// NextDue is when the first of the held, parked and delayed messages is due; zero if none waits.
	NextDue time.Time `json:"nextDue,omitzero"`
	// Skipped counts messages that were settled unhandled, because [Skip] or [SkipUnknown] says so.
	// SkippedTypes counts them by type, for the first 100 types.
	Skipped      uint64            `json:"skipped"`
	SkippedTypes map[string]uint64 `json:"skippedTypes,omitempty"`
	// Unknown counts messages that went to the poison queue because no handler takes their type. No
	// handler's Poisoned counts them.
	Unknown uint64 `json:"unknown"`
	// Lag is how far the group is behind, in all processes. Only [Router.HealthWithLag] asks.
	Lag *bus.Lag `json:"lag,omitempty"`

	// Handled, Failed and Poisoned count since Run: messages that succeeded, calls that failed, messages poisoned.
	Handled  uint64 `json:"handled"`
	Failed   uint64 `json:"failed"`
	Poisoned uint64 `json:"poisoned"`
	// LastError is the last error of the handler.
	LastError error `json:"lastError,omitempty"`
}

// Err is nil if every handler consumes, waits for a lane, is paused or suspended, or was stopped on
// purpose. Otherwise it says which do not, and what does not work.
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

// MarshalJSON implements json.Marshaler: the routes, and the text of Err as "error" if there is one.
func (h Health) MarshalJSON() ([]byte, error) {
	type plain Health
	return json.Marshal(struct {
		Err string `json:"error,omitempty"`
		plain
	}{errorText(h.Err()), plain(h)})
}

// MarshalJSON implements json.Marshaler: errors are their texts.
func (h RouteHealth) MarshalJSON() ([]byte, error) {
	type plain RouteHealth
	return json.Marshal(struct {
		plain
		Err       string `json:"error,omitempty"`
		LastError string `json:"lastError,omitempty"`
	}{plain(h), errorText(h.Err), errorText(h.LastError)})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return textOf(err)
}

// Health tells how the handlers are, at once: it does not ask the broker.
func (r *Router) Health() Health {
	var h Health
	for _, route := range r.Routes() {
		h.Routes = append(h.Routes, route.Health())
	}
	return h
}

// HealthWithLag is Health with the lag of each subscription, for which it asks the broker within
// ctx. The error says which lags are missing, and why; the rest of Health is there all the same.
func (r *Router) HealthWithLag(ctx context.Context) (Health, error) {
	h := r.Health()
	lagger, ok := bus.As[driver.Lagger](r.core.bus)
	if !ok {
		return h, fmt.Errorf("lag: %w: the driver of %s does not tell", bus.ErrUnsupported, r.core.bus.Driver().Capabilities().Broker)
	}
	type answer struct {
		lag bus.Lag
		err error
	}
	asked := map[subscriptionKey]answer{}
	var errs []error
	for i := range h.Routes {
		route := &h.Routes[i]
		key := subscriptionKey{route.Group, route.Topic}
		a, ok := asked[key]
		if !ok {
			a.lag, a.err = lagger.Lag(ctx, route.Topic, route.Group)
			asked[key] = a
			if a.err != nil {
				errs = append(errs, fmt.Errorf("lag of group %q on topic %q: %w", route.Group, route.Topic, a.err))
			}
		}
		if a.err == nil {
			route.Lag = &a.lag
		}
	}
	return h, errors.Join(errs...)
}

// Health tells how the handler is, at once: it does not ask the broker.
func (r *Route) Health() RouteHealth {
	h := RouteHealth{
		Name: r.name, Group: r.group, Topic: r.topic, State: StateNew,
		Handled: r.handled.Load(), Failed: r.failed.Load(), Poisoned: r.poisoned.Load(),
	}
	if err := r.lastError.Load(); err != nil {
		h.LastError = *err
	}
	if c := r.consumer.Load(); c != nil {
		c.describe(&h)
	}
	return h
}

// describe fills in the facts of the subscription.
func (c *consumer) describe(h *RouteHealth) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.State, h.Since, h.Reason, h.Err = c.standing.state, c.standing.since, c.reason(), c.wrong()
	h.Lanes = len(c.lanes)
	h.Skipped, h.SkippedTypes, h.Unknown = c.skipping.n, maps.Clone(c.skipping.byType), c.unknown.Load()
	h.InFlight, h.Held = c.flight.messages, len(c.held)
	h.Parked, h.Delayed = c.lot.n-c.lot.nDelayed, c.lot.nDelayed
	if due, ok := c.lot.nextDue(); ok {
		h.NextDue = due
	}
	if len(c.held) > 0 && (h.NextDue.IsZero() || c.held[0].due.Before(h.NextDue)) {
		h.NextDue = c.held[0].due
	}
}

func (c *consumer) stateNow() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}
