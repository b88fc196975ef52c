package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Router binds handlers to topics and runs them. It is made by [New], and is safe for concurrent use.
type Router struct {
	core  *core
	group string
	mu    sync.Mutex
	err   error  // a mistake that was made while the router runs: all later handlers have it
	used  string // by whom the middleware was taken over: a handler, or another Router; "" by nobody yet
	set   settings
}

// core is the state shared by the groups of one router.
type core struct {
	bus          *bus.Bus
	log          *slog.Logger
	drainTimeout time.Duration
	hooks        hooks

	poisonMu sync.Mutex
	poison   map[string]*groupPoison

	mu        sync.Mutex
	values    context.Context // the handlers' contexts have the values of Run's
	routes    []*Route
	tasks     []background
	errs      []error // mistakes of construction
	phase     phase
	consumers []*consumer
	failure   error         // the error that ended Run early
	ending    chan struct{} // closed when the end is wanted
	hurry     chan struct{} // closed to cut the drain short
	ready     chan struct{} // closed when the first start is over
	done      chan struct{} // closed when Run has returned
	result    error
	startErr  error
}

type phase int8

const (
	idle phase = iota
	running
	draining
	ended
)

type background struct {
	name string
	run  func(context.Context) error
}

// New makes a router. Its handlers consume as group. New never fails: [Router.Check] and Run report
// every mistake at once.
func New(b *bus.Bus, group string, opts ...RootOption) *Router {
	c := &core{
		bus:          b,
		drainTimeout: DefaultDrainTimeout,
		values:       context.Background(),
		poison:       map[string]*groupPoison{},
		ending:       make(chan struct{}),
		hurry:        make(chan struct{}),
		ready:        make(chan struct{}),
		done:         make(chan struct{}),
	}
	s := defaults()
	s.depth = 1
	for _, o := range opts {
		o.root(c, &s)
	}
	if c.log == nil {
		c.log = slog.Default()
		if b != nil {
			c.log = b.Logger()
		}
	}
	if b == nil {
		c.errs = append(c.errs, errors.New("the bus is nil"))
	}
	if c.drainTimeout <= 0 {
		c.errs = append(c.errs, fmt.Errorf("DrainTimeout is %v: want more than 0", c.drainTimeout))
	}
	c.errs = append(c.errs, c.hooks.errs...)
	return newRouter(c, group, s)
}

func newRouter(c *core, group string, s settings) *Router {
	r := &Router{core: c, group: group, set: s}
	if err := driver.CheckName("group", group); err != nil {
		r.mistake(err)
	}
	return r
}

// mistake notes a mistake: one of the whole router before Run, later one of the handlers that are
// added through r. Called with r's lock held, or before anybody knows r.
func (r *Router) mistake(err error) {
	c := r.core
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == idle {
		c.errs = append(c.errs, err)
	} else {
		r.err = errors.Join(r.err, err)
	}
}

// Group returns a router of another group that shares r's life and starts from its options.
func (r *Router) Group(name string, opts ...Option) *Router {
	s, _ := r.settings("Group", opts)
	return newRouter(r.core, name, s)
}

// With returns a router of the same group and life with other defaults for the handlers that are added through it.
func (r *Router) With(opts ...Option) *Router {
	s, err := r.settings("With", opts)
	return &Router{core: r.core, group: r.group, err: err, set: s}
}

// settings returns the settings and the mistake that somebody takes over from r.
func (r *Router) settings(by string, opts []Option) (settings, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used == "" {
		r.used = by
	}
	return r.set.with(opts), r.err
}

// Use adds middleware around all handlers of r, the first one outermost. Call it before handlers
// are added, and before With and Group, which take the middleware over: a later Use is an error of
// [Router.Check]. For some handlers only, use [Router.With] or the option [Use].
func (r *Router) Use(mw ...bus.Middleware) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used != "" {
		r.mistake(fmt.Errorf("Use comes after %s, which would be without its middleware: call Use first, or add the rest through With", r.used))
		return
	}
	r.set.use = append(r.set.use[:len(r.set.use):len(r.set.use)], mw...)
}

// Handle binds a handler to a topic. Several on one topic and group share a subscription and are told apart by the
// message types they take ([bus.EventTyper], [Accept]). While the router runs, the handler starts at once, if its
// topic is not consumed yet by its group; [Route.Ready] tells how it went.
func (r *Router) Handle(topic string, h bus.Handler, opts ...Option) *Route {
	s, err := r.settings(fmt.Sprintf("a handler of topic %q", topic), opts)
	route := newRoute(r.core, r.group, topic, h, s)
	if err != nil {
		route.err = err
	}
	r.core.add(route)
	return route
}

// HandleFunc is Handle for a function on raw messages.
func (r *Router) HandleFunc(topic string, h func(context.Context, *bus.Message) error, opts ...Option) *Route {
	return r.Handle(topic, bus.HandlerFunc(h), opts...)
}

// On binds a function on events of type T to a topic; see [bus.Typed].
func On[T any](r *Router, topic string, h func(context.Context, T) error, opts ...Option) *Route {
	return r.Handle(topic, bus.Typed(h), opts...)
}

// OnBatch binds a function on batches of events to a topic; see [bus.TypedBatch] and [Fill].
func OnBatch[T any](r *Router, topic string, h func(context.Context, []bus.Event[T]) error, opts ...Option) *Route {
	return r.Handle(topic, bus.TypedBatch(h), opts...)
}

// Go runs f beside the handlers: it is started before them, and its ctx ends after they have drained. An error of
// it ends Run. It must be called before Run.
func (r *Router) Go(name string, f func(context.Context) error) {
	c := r.core
	c.mu.Lock()
	defer c.mu.Unlock()
	if f == nil {
		c.errs = append(c.errs, fmt.Errorf("Go %q: the function is nil", name))
		return
	}
	if c.phase != idle {
		c.log.Error("a function was given to Go after Run, and is not called", "name", name)
		return
	}
	c.tasks = append(c.tasks, background{name, f})
}

// Routes returns the handlers in the order in which they were added. One that was stopped is left out when another is
// added later.
func (r *Router) Routes() []*Route {
	r.core.mu.Lock()
	defer r.core.mu.Unlock()
	return append([]*Route(nil), r.core.routes...)
}

// Check reports every mistake in how the router was put together, without talking to the broker. Run calls it.
func (r *Router) Check() error {
	c := r.core
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.planAll()
	return err
}

// planAll plans the consumers that Run starts with.
func (c *core) planAll() ([]*consumer, error) {
	if len(c.routes) == 0 && len(c.tasks) == 0 && len(c.errs) == 0 {
		return nil, fmt.Errorf("router: %w: the router has no handlers", bus.ErrInvalid)
	}
	return c.plan(c.routes)
}

// subscriptionKey identifies the consumer that handlers share.
type subscriptionKey struct{ group, topic string }

// plan makes the consumers of the routes; it reports all mistakes.
func (c *core) plan(routes []*Route) ([]*consumer, error) {
	errs := append([]error(nil), c.errs...)
	if c.bus == nil {
		return nil, fmt.Errorf("router: %w: %w", bus.ErrInvalid, errors.Join(errs...))
	}
	var order []subscriptionKey
	shared := map[subscriptionKey][]*Route{}
	names := map[string]bool{}
	for _, r := range routes {
		if r.err != nil {
			errs = append(errs, r.err)
			continue
		}
		if names[r.name] {
			errs = append(errs, fmt.Errorf("two handlers are named %q: set router.Name", r.name))
		}
		names[r.name] = true
		k := subscriptionKey{r.group, r.topic}
		if shared[k] == nil {
			order = append(order, k)
		}
		shared[k] = append(shared[k], r)
	}
	var consumers []*consumer
	for _, k := range order {
		table, err := newRouteTable(shared[k])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		cfg, from, err := subscriptionSettings(shared[k])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := cfg.keyWaits(shared[k], c.bus.Driver().Capabilities()); err != nil {
			errs = append(errs, err)
			continue
		}
		joins, err := c.joining(shared[k], cfg.guarantee)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if joins || cfg.guarantee == ExactlyOnce {
			if err := cfg.exactlyOnce(shared[k], c.bus.Driver().Capabilities()); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		sub := bus.Subscription{
			Topic: k.topic, Group: k.group, Start: from,
			InFlight: cfg.inFlight.messages, Bytes: cfg.inFlight.bytes, Transactional: cfg.transactional,
		}
		consumers = append(consumers, newConsumer(c, sub, cfg, table))
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("router: %w: %w", bus.ErrInvalid, errors.Join(errs...))
	}
	return consumers, nil
}

// subscriptionSettings merges the settings that the handlers of a subscription share.
func subscriptionSettings(routes []*Route) (cfg consumerConfig, from bus.Start, err error) {
	first := routes[0].set
	workers, flight, start, unordered, guarantee := first.workers, first.inFlight, first.from, first.unordered, first.guarantee
	var errs []error
	for _, r := range routes[1:] {
		errs = append(errs,
			merge(&workers, r.set.workers, "Workers", r),
			merge(&flight, r.set.inFlight, "InFlight", r),
			merge(&start, r.set.from, "From", r),
			merge(&unordered, r.set.unordered, "Unordered", r),
			merge(&guarantee, r.set.guarantee, "Guarantee", r))
	}
	cfg = consumerConfig{workers: workers.value, inFlight: flight.value, unordered: unordered.value, guarantee: guarantee.value}
	cfg.unknownWaits = slices.ContainsFunc(routes, func(r *Route) bool { return r.policy.KeyWaits })
	return cfg, start.value, errors.Join(errs...)
}

// keyWaits says why keys cannot wait for messages in the poison queue, if a policy wants it.
func (cfg *consumerConfig) keyWaits(routes []*Route, has bus.Capabilities) error {
	var errs []error
	for _, r := range routes {
		var why string
		switch {
		case cfg.guarantee == AtMostOnce && r.policy.Then == Stop:
			errs = append(errs, fmt.Errorf("handler %s: Policy.Then is Stop, which leaves the message unsettled, but Guarantee(AtMostOnce) settles it before it is handled", r.name))
			continue
		case !r.policy.KeyWaits:
			continue
		case !has.Parking:
			why = "a broker that parks messages; " + has.Broker + " cannot"
		case cfg.unordered:
			why = "messages to come in order; take away Unordered"
		case cfg.guarantee == AtMostOnce:
			why = "messages that are settled after they were handled; take away Guarantee(AtMostOnce)"
		case r.policy.Then != Poison:
			why = "messages that go into the poison queue; take away Policy.Then"
		default:
			continue
		}
		errs = append(errs, fmt.Errorf("handler %s: Policy.KeyWaits needs %s", r.name, why))
	}
	return errors.Join(errs...)
}

// joining says whether handlers settle in their own transactions, or why they cannot. These settle everything exactly once.
func (c *core) joining(routes []*Route, guarantee Level) (joins bool, err error) {
	_, hosts := bus.As[driver.TransactionHost](c.bus)
	var errs []error
	for _, r := range routes {
		switch {
		case r.joining == nil:
		case !hosts:
			errs = append(errs, fmt.Errorf("handler %s settles its messages in its own transaction (outbox.OnceInBus), but the bus is in no database: %s; use outbox.Once",
				r.name, c.bus.Driver().Capabilities().Broker))
		case guarantee == AtMostOnce:
			errs = append(errs, fmt.Errorf("handler %s settles its messages in its own transaction (outbox.OnceInBus), so Guarantee cannot be %v", r.name, guarantee))
		default:
			joins = true
		}
	}
	return joins, errors.Join(errs...)
}

// exactlyOnceInFlight is how many messages may be in flight so that a commit has room to name all that are unfinished.
const exactlyOnceInFlight = 512

// exactlyOnce finds out how the guarantee can be kept.
func (cfg *consumerConfig) exactlyOnce(routes []*Route, has bus.Capabilities) error {
	cfg.inFlight.messages = min(cfg.inFlight.messages, exactlyOnceInFlight)
	cfg.transactional = has.Transactions
	var errs []error
	for _, r := range routes {
		if r.batch != nil && r.set.fill.n > exactlyOnceInFlight {
			errs = append(errs, fmt.Errorf("handler %s: Fill is %d messages, but with exactly once at most %d are in flight", r.name, r.set.fill.n, exactlyOnceInFlight))
		}
		if !cfg.transactional && !r.idempotent {
			errs = append(errs, fmt.Errorf("handler %s: exactly once cannot be kept, because %s does not publish and settle in one transaction: use a bus that does (Kafka, or one in an SQL database), or a handler that remembers handled messages (outbox.Once)",
				r.name, has.Broker))
		}
	}
	return errors.Join(errs...)
}

// merge lets the deeper of two settings win.
func merge[T comparable](into *setting[T], other setting[T], name string, r *Route) error {
	if other.depth == into.depth && other.value != into.value {
		return fmt.Errorf("topic %q, group %q: handler %s sets %s to %v, another one to %v, but they share a subscription", r.topic, r.group, r.name, name, other.value, into.value)
	}
	if other.depth > into.depth {
		*into = other
	}
	return nil
}
