package kafka

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Config configures a Kafka bus. A field that is zero has its default.
type Config struct {
	// Brokers are the addresses to begin with, host:port or host (port 9092). At least one is
	// needed; the others of the cluster are found through them.
	Brokers []string
	// TLS is the configuration of encrypted connections. nil is no encryption.
	TLS *tls.Config
	// SASL authenticates this process. nil means no authentication. The packages plain and scram of
	// franz-go make a mechanism, also of a function that is called for each connection.
	SASL sasl.Mechanism

	// Linger is how long a message waits for others of its partition, to share a batch with them.
	// Defaults to 0: messages published while a request is under way make the next batch. So a busy
	// producer batches without waiting, and a quiet producer has no delay. At most 10 s.
	Linger time.Duration
	// Compression of the batches: none, snappy, lz4, zstd or gzip. Defaults to snappy: it is
	// readable by every Kafka client, and the cheapest in CPU of the codecs that shrink typical
	// JSON to a third.
	Compression string
	// MaxMessage is the largest message in bytes as Kafka counts them (key, payload, headers and
	// about 100 bytes), and the largest batch. A topic's own max.message.bytes holds if it is less;
	// topics that the bus creates get MaxMessage. Defaults to 2 MiB; 1 KiB to 64 MiB.
	MaxMessage int
	// PublishTimeout bounds a publish without an earlier deadline in its context; it may take a
	// sixteenth longer. Defaults to 30 s; 1 s to 10 min.
	PublishTimeout time.Duration

	// Partitions is how many partitions a topic is created with when it does not exist. Defaults to
	// 0: topics are not created, and a missing one is an error. At most 10,000.
	Partitions int
	// Replication is the replication factor of topics that are created. Defaults to the broker's
	// default.
	Replication int

	// Instance makes the group memberships static (KIP-345): a member that restarts within
	// SessionTimeout gets its lanes back without a rebalance. It must be unique among the processes
	// of a group. The price is that after a clean shutdown, too, the lanes wait for SessionTimeout
	// before another member gets them. Defaults to none.
	Instance string
	// SessionTimeout is after how long without a sign of life a process counts as dead, and its
	// lanes go to others. Defaults to 15 s; the broker allows 6 s to 30 min unless it is configured
	// otherwise.
	SessionTimeout time.Duration
	// Rack is where this process is, as the brokers call it (broker.rack), to read from replicas
	// nearby (KIP-392).
	Rack string
	// CommitInterval is how long a settlement may wait to be committed. After a crash, the messages
	// settled in the last interval are delivered again. Defaults to 100 ms; 1 ms to 1 min.
	CommitInterval time.Duration

	// Client are options of the native clients, for settings that Config lacks. They also go to the
	// clients of subscriptions. They win over the driver's own options, except for the options that
	// offset commits and transactions rest on. Options that weaken acknowledgement or idempotence
	// break the bus's guarantees.
	Client []kgo.Opt
}

// Defaults of Config.
const (
	DefaultCompression    = "snappy"
	DefaultMaxMessage     = 2 << 20
	DefaultPublishTimeout = 30 * time.Second
	DefaultSessionTimeout = 15 * time.Second
	DefaultCommitInterval = 100 * time.Millisecond

	defaultPort = "9092"
)

// Limits of Config, the same for URLs.
const (
	maxLinger         = 10 * time.Second
	minMaxMessage     = 1 << 10
	maxMaxMessage     = 64 << 20
	minPublishTimeout = time.Second
	maxPublishTimeout = 10 * time.Minute
	maxPartitions     = 10_000
	maxReplication    = 100
	minSession        = 100 * time.Millisecond // the broker's own bounds are checked by the broker
	maxSession        = 30 * time.Minute
	minCommitInterval = time.Millisecond
	maxCommitInterval = time.Minute
)

var codecs = map[string]func() kgo.CompressionCodec{
	"none":   kgo.NoCompression,
	"snappy": kgo.SnappyCompression,
	"lz4":    kgo.Lz4Compression,
	"zstd":   kgo.ZstdCompression,
	"gzip":   kgo.GzipCompression,
}

var codecNames = []string{"snappy", "none", "lz4", "zstd", "gzip"} // the default first

// ParseURL reads the URL of a Kafka bus into a Config: see the package documentation for its form.
// All mistakes are reported at once, none with the password.
func ParseURL(rawURL string) (Config, error) {
	p, err := driver.ParseParams(rawURL)
	if err != nil {
		return Config{}, err
	}
	if p.URL().Scheme != "kafka" {
		p.Fail("scheme %q: want kafka", p.URL().Scheme)
	}
	return fromParams(p)
}

func fromParams(p *driver.Params) (Config, error) {
	u := p.URL()
	c := Config{
		Linger:         p.Duration("linger", 0, 0, maxLinger),
		Compression:    p.Enum("compression", codecNames...),
		MaxMessage:     p.Int("maxmessage", DefaultMaxMessage, minMaxMessage, maxMaxMessage),
		PublishTimeout: p.Duration("timeout", DefaultPublishTimeout, minPublishTimeout, maxPublishTimeout),
		Partitions:     p.Int("partitions", 0, 0, maxPartitions),
		Replication:    p.Int("replication", -1, -1, maxReplication),
		Instance:       p.Text("instance", ""),
		SessionTimeout: p.Duration("session", DefaultSessionTimeout, minSession, maxSession),
		Rack:           p.Text("rack", ""),
		CommitInterval: p.Duration("commit", DefaultCommitInterval, minCommitInterval, maxCommitInterval),
	}
	if u.Opaque != "" || strings.Trim(u.Path, "/") != "" {
		p.Fail("want kafka://HOST:PORT,HOST:PORT?…, without a path")
	}
	for _, host := range strings.Split(u.Host, ",") {
		address, err := withPort(host)
		if err != nil {
			p.Fail("%v", err)
		}
		c.Brokers = append(c.Brokers, address)
	}
	if p.Bool("tls", false) {
		c.TLS = p.TLS()
	} else {
		p.NoTLS("tls=true")
	}
	mechanism := p.Enum("sasl", "none", "plain", "scram-sha-256", "scram-sha-512")
	name := u.User.Username()
	password := p.Password()
	secret, _ := password() // Password has told p of an error
	switch {
	case mechanism == "none" && u.User != nil:
		p.Fail("user and password are given: say with parameter \"sasl\" how they are sent: plain, scram-sha-256 or scram-sha-512")
	case mechanism != "none" && (name == "" || secret == ""):
		p.Fail("parameter \"sasl\" is %q: want kafka://USER:PASSWORD@HOST, or the user and parameter \"passwordfile\"", mechanism)
	case mechanism == "plain":
		c.SASL = plain.Plain(func(context.Context) (plain.Auth, error) {
			secret, err := password()
			return plain.Auth{User: name, Pass: secret}, err
		})
	case mechanism != "none":
		auth := func(context.Context) (scram.Auth, error) {
			secret, err := password()
			return scram.Auth{User: name, Pass: secret}, err
		}
		if c.SASL = scram.Sha256(auth); mechanism == "scram-sha-512" {
			c.SASL = scram.Sha512(auth)
		}
	}
	if err := p.Err(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// withPort checks an address, and completes it with the default port.
func withPort(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil { // no port, or an IPv6 address, which needs brackets
		host, port = strings.Trim(address, "[]"), defaultPort
	}
	if host == "" || port == "" || strings.ContainsAny(host, "/@ ") {
		return "", fmt.Errorf("broker %q: want HOST or HOST:PORT", address)
	}
	return net.JoinHostPort(host, port), nil
}

// complete fills in the defaults and reports all errors at once.
func (c *Config) complete() error {
	var errs []error
	check := func(ok bool, field string, value any, want string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s is %v: want %s", field, value, fmt.Sprintf(want, args...)))
		}
	}
	check(len(c.Brokers) > 0, "Brokers", "empty", "at least one address")
	brokers := make([]string, 0, len(c.Brokers))
	for _, b := range c.Brokers {
		address, err := withPort(b)
		if err != nil {
			errs = append(errs, err)
		}
		brokers = append(brokers, address)
	}
	c.Brokers = brokers
	c.Compression = cmp.Or(c.Compression, DefaultCompression)
	c.MaxMessage = cmp.Or(c.MaxMessage, DefaultMaxMessage)
	c.PublishTimeout = cmp.Or(c.PublishTimeout, DefaultPublishTimeout)
	c.Replication = cmp.Or(c.Replication, -1)
	c.SessionTimeout = cmp.Or(c.SessionTimeout, DefaultSessionTimeout)
	c.CommitInterval = cmp.Or(c.CommitInterval, DefaultCommitInterval)

	within := func(field string, d, lo, hi time.Duration) {
		check(lo <= d && d <= hi, field, d, "%v to %v", lo, hi)
	}
	_, known := codecs[c.Compression]
	check(known, "Compression", fmt.Sprintf("%q", c.Compression), "one of %s", strings.Join(codecNames, ", "))
	within("Linger", c.Linger, 0, maxLinger)
	within("PublishTimeout", c.PublishTimeout, minPublishTimeout, maxPublishTimeout)
	within("SessionTimeout", c.SessionTimeout, minSession, maxSession)
	within("CommitInterval", c.CommitInterval, minCommitInterval, maxCommitInterval)
	check(minMaxMessage <= c.MaxMessage && c.MaxMessage <= maxMaxMessage, "MaxMessage", c.MaxMessage, "%d to %d", minMaxMessage, maxMaxMessage)
	check(0 <= c.Partitions && c.Partitions <= maxPartitions, "Partitions", c.Partitions, "0 to %d", maxPartitions)
	check(-1 <= c.Replication && c.Replication <= maxReplication, "Replication", c.Replication, "1 to %d, or -1 for the broker's default", maxReplication)
	if len(errs) > 0 {
		return fmt.Errorf("kafka: %w: %w", bus.ErrInvalid, errors.Join(errs...))
	}
	return nil
}
