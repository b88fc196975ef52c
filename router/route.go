package router

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Route is a handler bound to a topic. Handlers of one topic and group share a subscription: they are paused,
// resumed and stopped together. Safe for concurrent use.
type Route struct {
	core  *core
	topic string
	group string
	name  string
	types []string
	set   settings
	err   error // its own mistake; see Check

	handler    bus.Handler
	idempotent bool
	joining    driver.Joining   // nil: the handler does not settle in its own transaction
	batch      bus.BatchHandler // nil: the handler takes single messages
	queue      *batchQueue
	timeout    time.Duration
	policy     Policy

	handled   atomic.Uint64
	failed    atomic.Uint64
	poisoned  atomic.Uint64
	lastError atomic.Pointer[error]

	ready    chan struct{} // closed when started or failed to
	startErr error
	paused   atomic.Bool // by Pause, perhaps before it runs
	consumer atomic.Pointer[consumer]
}

func newRoute(c *core, group, topic string, h bus.Handler, s settings) *Route {
	r := &Route{core: c, topic: topic, group: group, set: s, timeout: s.timeout, policy: s.policy, ready: make(chan struct{})}
	if isNil(h) {
		r.err = fmt.Errorf("topic %q: the handler is nil", topic)
		return r
	}
	if t, ok := h.(bus.EventTyper); ok {
		r.types = t.EventTypes()
	}
	if s.accept != nil {
		r.types = s.accept
	}
	r.name = s.name
	if r.name == "" {
		r.name = strings.Join(append([]string{group, topic}, r.types...), "/")
	}
	if replier, ok := h.(interface {
		AllowReplies(topics []string) bus.Handler
	}); ok {
		h = replier.AllowReplies(s.replyTo)
	}
	_, r.idempotent = h.(bus.Idempotent)
	r.joining, _ = h.(driver.Joining)
	if c, ok := h.(bus.Checker); ok {
		if err := c.Check(); err != nil {
			r.err = fmt.Errorf("handler %s: %w", r.name, err)
			return r
		}
	}
	_, wantsBatch := h.(bus.BatchHandler)
	for i := len(s.use) - 1; i >= 0; i-- {
		if s.use[i] == nil {
			r.err = fmt.Errorf("handler %s: middleware %d is nil", r.name, i+1)
			return r
		}
		h = s.use[i](h)
		if h == nil {
			r.err = fmt.Errorf("handler %s: middleware %d returned nil", r.name, i+1)
			return r
		}
		if c, ok := h.(bus.Checker); ok {
			if err := c.Check(); err != nil {
				r.err = fmt.Errorf("handler %s: middleware %d: %w", r.name, i+1, err)
				return r
			}
		}
		if _, ok := h.(bus.BatchHandler); wantsBatch && !ok {
			r.err = fmt.Errorf("handler %s: middleware %d takes single messages only, but the handler takes batches: write it with bus.Around", r.name, i+1)
			return r
		}
	}
	r.handler = h
	if wantsBatch {
		r.batch = h.(bus.BatchHandler)
		r.queue = &batchQueue{fill: s.fill}
	}
	r.err = r.check()
	return r
}

// isNil says whether a handler is nil, or a nil pointer or function behind the interface.
func isNil(h bus.Handler) bool {
	switch v := reflect.ValueOf(h); v.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Func, reflect.Pointer:
		return v.IsNil()
	default:
		return false
	}
}

func (r *Route) check() error {
	s := r.set
	var errs []string
	bad := func(format string, args ...any) { errs = append(errs, fmt.Sprintf(format, args...)) }
	if err := driver.CheckName("topic", r.topic); err != nil {
		bad("%v", err)
	}
	if s.workers.value < 1 || s.workers.value > 10_000 {
		bad("Workers is %d: want 1 to 10,000", s.workers.value)
	}
	if f := s.inFlight.value; f.messages < 1 || f.messages > 1_000_000 || f.bytes < 1 {
		bad("InFlight is %d messages, %d bytes: want 1 to 1,000,000 messages and at least 1 byte", f.messages, f.bytes)
	}
	if s.timeout < 0 {
		bad("Timeout is %v: want 0 (none) or more", s.timeout)
	}
	if g := s.guarantee.value; g < AtLeastOnce || g > ExactlyOnce {
		bad("Guarantee is %v: want AtLeastOnce, AtMostOnce or ExactlyOnce", g)
	}
	if s.fill.n < 1 || s.fill.wait < 0 {
		bad("Fill is %d messages, %v: want at least 1 message and 0 or more", s.fill.n, s.fill.wait)
	}
	if r.batch != nil && s.fill.n > s.inFlight.value.messages {
		bad("Fill is %d messages, but InFlight only %d", s.fill.n, s.inFlight.value.messages)
	}
	if t, ok := s.from.value.Time(); ok && t.IsZero() {
		bad("From is StartAt of the zero time")
	}
	if err := s.policy.check(); err != nil {
		bad("%v", err)
	}
	if s.skipNothing {
		bad("Skip names no type: SkipUnknown skips every type that no handler takes")
	}
	if len(errs) > 0 {
		return fmt.Errorf("handler %s: %s", r.name, strings.Join(errs, "; "))
	}
	return nil
}

// Name returns the handler's name; see the option [Name].
func (r *Route) Name() string { return r.name }

// Pause stops calling the handlers of the topic and group, and taking in their messages, until Resume. Calls that
// run go on to their end. Nothing is given back to the broker. Before Run it has the subscription begin paused.
func (r *Route) Pause() {
	r.paused.Store(true)
	if c := r.consumer.Load(); c != nil {
		c.pause(true)
	}
}

// Resume ends a Pause.
func (r *Route) Resume() {
	r.paused.Store(false)
	if c := r.consumer.Load(); c != nil {
		c.pause(false)
	}
}

// Ready waits until the handler consumes. It returns the error with which its start failed, or the context's.
func (r *Route) Ready(ctx context.Context) error {
	select {
	case <-r.ready:
		return r.startErr
	case <-r.core.done: // the router has ended without starting it
		select {
		case <-r.ready:
			return r.startErr
		default:
		}
		return fmt.Errorf("handler %s: %w", r.name, errors.Join(bus.ErrClosed, r.core.result))
	case <-ctx.Done():
		return fmt.Errorf("handler %s is not ready: %w", r.name, ctx.Err())
	}
}

// Stop drains the subscription of the handler's topic and group, within ctx, and leaves it. Other members of the
// group go on with its messages; this router does not consume the topic for the group any more. The drain timeout bounds it, too. A
// handler must not wait for it: the drain waits for the handler.
func (r *Route) Stop(ctx context.Context) error {
	c := r.consumer.Load()
	if c == nil {
		return fmt.Errorf("handler %s does not run", r.name)
	}
	return c.stop(ctx)
}

// routeTable finds the handler of a message by its type.
type routeTable struct {
	routes  []*Route
	byType  map[string]*Route
	all     *Route // takes every type that no other takes
	untyped *Route // takes messages without a type

	skip        map[string]bool // types that no handler gets
	skipUnknown bool            // nor any type that none takes
}

// newRouteTable checks that each message has one clear route.
func newRouteTable(routes []*Route) (*routeTable, error) {
	t := &routeTable{routes: routes, byType: map[string]*Route{}, skip: map[string]bool{}}
	typed := 0
	for _, r := range routes {
		if len(r.types) == 0 {
			if t.all != nil {
				return nil, fmt.Errorf("topic %q, group %q: handlers %s and %s would both take all types; give one another group, or router.Accept", r.topic, r.group, t.all.name, r.name)
			}
			t.all = r
			continue
		}
		typed++
		t.untyped = r
		for _, name := range r.types {
			if other := t.byType[name]; other != nil {
				return nil, fmt.Errorf("topic %q, group %q: handlers %s and %s would both take type %q; give one another group", r.topic, r.group, other.name, r.name, name)
			}
			t.byType[name] = r
		}
	}
	if t.all != nil || typed != 1 {
		t.untyped = t.all
	}
	return t, t.addSkips()
}

// addSkips takes in what the options of the handlers skip.
func (t *routeTable) addSkips() error {
	for _, r := range t.routes {
		t.skipUnknown = t.skipUnknown || r.set.skipUnknown
		for _, typ := range r.set.skip {
			if other := t.byType[typ]; other != nil {
				return fmt.Errorf("topic %q, group %q: Skip names type %q, which handler %s takes", r.topic, r.group, typ, other.name)
			}
			t.skip[typ] = true
		}
	}
	return nil
}

// route finds the handler of a delivery: the handler that had it before it was parked, if still
// there, or else by its type.
func (t *routeTable) route(d *bus.Delivery) *Route {
	if d.Handler != "" {
		for _, r := range t.routes {
			if r.name == d.Handler {
				return r
			}
		}
	}
	return t.find(d.Type)
}

// find returns the handler of a type, or nil if nobody takes it.
func (t *routeTable) find(typ string) *Route {
	switch r := t.byType[typ]; {
	case r != nil:
		return r
	case t.skip[typ]:
		return nil
	case typ == "":
		return t.untyped
	default:
		return t.all
	}
}
