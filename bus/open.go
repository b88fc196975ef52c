package bus

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/millrace-go/millrace/internal/redact"
)

type opener = func(ctx context.Context, rawURL string) (Driver, error)

var registry = struct {
	sync.RWMutex
	openers map[string]opener
	twice   []string
}{openers: map[string]opener{}}

// register makes a driver known under a URL scheme.
func register(scheme string, open func(ctx context.Context, rawURL string) (Driver, error)) {
	registry.Lock()
	defer registry.Unlock()
	if _, ok := registry.openers[scheme]; ok {
		registry.twice = append(registry.twice, scheme)
		return
	}
	registry.openers[scheme] = open
}

// adapters maps schemes to packages of this module, to name the missing import.
var adapters = map[string]string{
	"memory":     "adapters/memory",
	"kafka":      "adapters/kafka",
	"amqp":       "adapters/rabbitmq",
	"amqps":      "adapters/rabbitmq",
	"postgres":   "adapters/sql/postgres",
	"postgresql": "adapters/sql/postgres",
	"mysql":      "adapters/sql/mysql",
	"mariadb":    "adapters/sql/mysql",
	"sqlite":     "adapters/sql/sqlite",
}

// Open opens the bus that the URL names: memory:, sqlite:orders.db, postgres://…, mysql://…,
// kafka://…, amqp://…. The driver's package must be imported; docs/configuration.md lists every
// parameter.
//
// Open returns once the broker has answered. It fails after the connect timeout
// ([WithConnectTimeout], 15 s by default) or when ctx ends. ctx does not bound the life of the bus,
// which ends with Close. No error holds the URL's password.
func Open(ctx context.Context, rawURL string, opts ...Option) (*Bus, error) {
	o := newOptions(opts)
	if rawURL == "" {
		return nil, fmt.Errorf("bus: URL: %w: it is empty; want one such as memory: or sqlite:orders.db (%s)", ErrInvalid, registered())
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("bus: URL: %w: %s", ErrInvalid, redact.Malformed(rawURL, err))
	}
	open, err := openerOf(u)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.connectTimeout)
	defer cancel()
	d, err := open(ctx, rawURL)
	if err != nil {
		return nil, err
	}
	return newBus(d, o), nil
}

func openerOf(u *url.URL) (opener, error) {
	scheme := u.Scheme
	registry.RLock()
	defer registry.RUnlock()
	if len(registry.twice) > 0 {
		return nil, fmt.Errorf("bus: URL scheme %q is registered by two imported packages", registry.twice[0])
	}
	if open, ok := registry.openers[scheme]; ok {
		return open, nil
	}
	if pkg, ok := adapters[scheme]; ok {
		return nil, fmt.Errorf("bus: URL %s: the driver for %q is not imported: add import _ %q", redact.URL(u), scheme, "github.com/millrace-go/millrace/"+pkg)
	}
	known := make([]string, 0, len(adapters))
	for s := range adapters {
		known = append(known, s)
	}
	slices.Sort(known)
	return nil, fmt.Errorf("bus: URL %s: %w: unknown scheme %q; %s; Millrace has %s, each by importing its package below github.com/millrace-go/millrace/adapters, or adapters/all",
		redact.URL(u), ErrInvalid, scheme, registeredLocked(), strings.Join(known, ", "))
}

func registered() string {
	registry.RLock()
	defer registry.RUnlock()
	return registeredLocked()
}

func registeredLocked() string {
	if len(registry.openers) == 0 {
		return "no driver is imported"
	}
	var names []string
	for s := range registry.openers {
		names = append(names, s)
	}
	slices.Sort(names)
	return "imported are " + strings.Join(names, ", ")
}
