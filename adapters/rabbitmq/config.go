package rabbitmq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func init() {
	driver.Register("amqp", fromURL)
	driver.Register("amqps", fromURL)
}

// Defaults of [Config].
const (
	DefaultLanes      = 8
	DefaultHeartbeat  = 10 * time.Second
	DefaultUnrouted   = 100_000
	DefaultMaxMessage = 16<<20 - storedRoom
)

// Queue types of [Config].
const (
	// Quorum queues are replicated in a cluster. They are also the faster queues for many
	// publishers and for consumers.
	Quorum = "quorum"
	// Classic queues live on one node: while the node is down they are out of reach, and if its
	// disk is lost, so are they.
	Classic = "classic"
)

// Config configures a RabbitMQ bus. A field that is zero has its default.
type Config struct {
	// Hosts are the nodes of one cluster as host or host:port, tried in this order whenever a
	// connection is made. The port defaults to 5672, and with TLS to 5671. Required.
	Hosts []string
	// User and Password default to guest and guest, which RabbitMQ accepts on its own machine only.
	User     string
	Password string `json:"-"`
	// Credentials returns the user and password for each connection, in place of User and Password,
	// so that they can change without a restart. An error is a failed try to connect, which is
	// repeated. It is called by several goroutines.
	Credentials func() (user, password string, err error) `json:"-"`
	// VHost defaults to "/".
	VHost string
	// TLS turns TLS on. ServerName defaults to the host that is dialled.
	TLS *tls.Config `json:"-"`
	// Name names the connections in RabbitMQ's own tools. Defaults to the program's name.
	Name string
	// Queue is the type of the queues that this process creates, [Quorum] or [Classic]. Defaults to
	// Quorum. Existing queues are used as they are.
	Queue string
	// Lanes is the number of queues of a group that this process creates, 1 to 64. Defaults to 8.
	// More lanes let more processes share a group. An existing group keeps the number that it was
	// created with.
	Lanes int
	// Heartbeat is the interval of signs of life, in whole seconds, 2 s to 5 min. Defaults to 10 s.
	// A connection without any for one and a half intervals is given up.
	Heartbeat time.Duration
	// Unrouted is how many messages a topic keeps while it has no group, when this process creates
	// the topic. Further messages are refused. Defaults to 100,000.
	Unrouted int
	// MaxMessage is the largest message by [bus.Message.Size], in bytes. The server's limit must be
	// 256 KiB higher: a parked or poisoned message is stored with its headers and failure in the
	// body. Defaults to 16,515,072: 256 KiB below the server's own default since RabbitMQ 4, 16
	// MiB.
	MaxMessage int
}

// String shows the configuration without the password.
func (c Config) String() string {
	c.Password, c.Credentials = "xxxxx", nil
	type plain Config // without this method
	return fmt.Sprintf("%+v", plain(c))
}

// GoString is String, so that %#v keeps the password as well.
func (c Config) GoString() string { return c.String() }

// ParseURL reads the configuration from a URL, which the package's documentation describes.
func ParseURL(rawURL string) (Config, error) {
	p, err := driver.ParseParams(rawURL)
	if err != nil {
		return Config{}, err
	}
	return fromParams(p)
}

func fromURL(ctx context.Context, p *driver.Params) (driver.Driver, error) {
	c, err := fromParams(p)
	if err != nil {
		return nil, err
	}
	return open(ctx, c)
}

// Open opens a bus, and returns once the broker has answered. Without a deadline in ctx it waits at
// most 15 s. ctx does not bound the life of the bus.
func Open(ctx context.Context, c Config, opts ...bus.Option) (*bus.Bus, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
	}
	d, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	return bus.New(d, opts...), nil
}

func fromParams(p *driver.Params) (Config, error) {
	u := p.URL()
	c := Config{
		Name:       p.Text("name", ""),
		Queue:      p.Enum("queue", Quorum, Classic),
		Lanes:      p.Int("lanes", DefaultLanes, 1, slots),
		Heartbeat:  p.Duration("heartbeat", DefaultHeartbeat, minHeartbeat, maxHeartbeat),
		Unrouted:   p.Int("unrouted", DefaultUnrouted, 1, maxUnrouted),
		MaxMessage: p.Int("maxmessage", DefaultMaxMessage, minMaxMessage, maxMaxMessage),
	}
	if u.Opaque != "" || u.Host == "" {
		p.Fail("want amqp://user:password@host:5672/vhost: the host is missing")
	} else {
		c.Hosts = strings.Split(u.Host, ",")
	}
	if u.User != nil {
		c.User = u.User.Username()
		c.Password, _ = u.User.Password()
	}
	if password := p.Password(); c.Password == "" && c.User != "" {
		c.Credentials = func() (string, string, error) {
			secret, err := password()
			return c.User, secret, err
		}
	}
	// As RabbitMQ's own libraries read it: no path, a bare / and %2F are the default vhost.
	c.VHost = strings.TrimPrefix(u.Path, "/")
	if u.Scheme == "amqps" {
		c.TLS = p.TLS()
	} else {
		p.NoTLS("the scheme amqps")
	}
	if err := p.Err(); err != nil {
		return Config{}, err
	}
	if _, err := c.complete(); err != nil {
		p.Fail("%w", err)
		return Config{}, p.Err()
	}
	return c, nil
}

const (
	minHeartbeat  = 2 * time.Second
	maxHeartbeat  = 5 * time.Minute
	maxUnrouted   = 1_000_000_000
	minMaxMessage = 1 << 10
	maxMaxMessage = 512 << 20 // the most that a server can be set to
)

// complete fills in the defaults and checks everything, all mistakes at once.
func (c Config) complete() (Config, error) {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Hosts) == 0 {
		fail("Hosts is empty: want at least one host or host:port")
	}
	hosts := make([]string, len(c.Hosts))
	for i, h := range c.Hosts {
		var err error
		if hosts[i], err = address(h, c.TLS != nil); err != nil {
			fail("host %q: %w", h, err)
		}
	}
	c.Hosts = hosts
	if c.User == "" && c.Password == "" {
		c.User, c.Password = "guest", "guest"
	}
	if c.Credentials == nil {
		user, password := c.User, c.Password
		c.Credentials = func() (string, string, error) { return user, password, nil }
	}
	if c.VHost == "" {
		c.VHost = "/"
	}
	if c.Name == "" {
		c.Name = filepath.Base(os.Args[0])
	}
	switch c.Queue {
	case "":
		c.Queue = Quorum
	case Quorum, Classic:
	default:
		fail("Queue is %q: want %s or %s", c.Queue, Quorum, Classic)
	}
	number := func(name string, v *int, def, lo, hi int) {
		if *v == 0 {
			*v = def
		}
		if *v < lo || *v > hi {
			fail("%s is %d: want %d to %d", name, *v, lo, hi)
		}
	}
	number("Lanes", &c.Lanes, DefaultLanes, 1, slots)
	number("Unrouted", &c.Unrouted, DefaultUnrouted, 1, maxUnrouted)
	number("MaxMessage", &c.MaxMessage, DefaultMaxMessage, minMaxMessage, maxMaxMessage)
	if c.Heartbeat == 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.Heartbeat < minHeartbeat || c.Heartbeat > maxHeartbeat || c.Heartbeat%time.Second != 0 {
		fail("heartbeat is %v: want whole seconds between %v and %v", c.Heartbeat, minHeartbeat, maxHeartbeat)
	}
	if len(errs) > 0 {
		return Config{}, fmt.Errorf("rabbitmq: config: %w: %w", bus.ErrInvalid, errors.Join(errs...))
	}
	return c, nil
}

// link is the part of a complete configuration that connections need.
func (c Config) link() amqplink.Config {
	return amqplink.Config{
		Hosts: c.Hosts, Credentials: c.Credentials, VHost: c.VHost, TLS: c.TLS, Name: c.Name, Heartbeat: c.Heartbeat,
	}
}

// address adds the default port to a host that has none.
func address(host string, tls bool) (string, error) {
	u, err := url.Parse("//" + host)
	if err != nil || u.Host != host || u.Hostname() == "" {
		return "", errors.New("want host or host:port")
	}
	port := u.Port()
	if port == "" {
		port = "5672"
		if tls {
			port = "5671"
		}
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}
