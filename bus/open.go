package bus

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Opener opens a driver for a parsed URL. It reads its parameters from p and returns p.Err() if that is not nil.
// It waits within ctx until the broker has answered once, so that a wrong address is an error at the start.
type Opener func(ctx context.Context, p *Params) (Driver, error)

var registry = struct {
	sync.RWMutex
	openers map[string]Opener
	twice   []string
}{openers: map[string]Opener{}}

// RegisterDriver makes a driver known under a URL scheme. Drivers call it from init. A scheme that is registered
// twice is an error of every Open, because which of the two would be opened depends on the order of imports.
func RegisterDriver(scheme string, open Opener) {
	registry.Lock()
	defer registry.Unlock()
	if _, ok := registry.openers[scheme]; ok {
		registry.twice = append(registry.twice, scheme)
		return
	}
	registry.openers[scheme] = open
}

// adapters are the packages of this module by scheme, to name the import that is missing.
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

// Open opens the bus that the URL names: memory:, sqlite:orders.db, postgres://…, mysql://…, kafka://…, amqp://….
// The driver's package must have been imported; docs/configuration.md lists every parameter. It returns once the
// broker has answered, at the latest after the connect timeout ([WithConnectTimeout]) or when ctx ends; ctx does
// not bound the life of the bus, which ends with Close. No error holds the URL's password.
func Open(ctx context.Context, rawURL string, opts ...Option) (*Bus, error) {
	o := newOptions(opts)
	if rawURL == "" {
		return nil, fmt.Errorf("bus: URL: %w: it is empty; want one such as memory: or sqlite:orders.db (%s)", ErrInvalid, registered())
	}
	p, err := ParseParams(rawURL)
	if err != nil {
		return nil, err
	}
	open, err := opener(p)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.connectTimeout)
	defer cancel()
	d, err := open(ctx, p)
	if err != nil {
		return nil, err
	}
	return newBus(d, o), nil
}

func opener(p *Params) (Opener, error) {
	scheme := p.URL().Scheme
	registry.RLock()
	defer registry.RUnlock()
	if len(registry.twice) > 0 {
		return nil, fmt.Errorf("bus: URL scheme %q is registered by two imported packages", registry.twice[0])
	}
	if open, ok := registry.openers[scheme]; ok {
		return open, nil
	}
	if pkg, ok := adapters[scheme]; ok {
		return nil, fmt.Errorf("bus: URL %s: the driver for %q is not imported: add import _ %q", p, scheme, "github.com/millrace-go/millrace/"+pkg)
	}
	known := make([]string, 0, len(adapters))
	for s := range adapters {
		known = append(known, s)
	}
	slices.Sort(known)
	return nil, fmt.Errorf("bus: URL %s: %w: unknown scheme %q; %s; Millrace has %s, each by importing its package below github.com/millrace-go/millrace/adapters, or adapters/all",
		p, ErrInvalid, scheme, registeredLocked(), strings.Join(known, ", "))
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
