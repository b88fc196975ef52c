package sqllog

import (
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/sqltext"
)

// Config holds the settings common to the dialects' configurations. A zero field has its default.
type Config struct {
	Shards    int
	Lease     time.Duration
	Poll      time.Duration
	Commit    time.Duration
	Retention time.Duration
	NoMigrate bool
}

// Defaults and bounds of Config.
const (
	DefaultShards = 16
	MaxShards     = 256

	DefaultLease = 10 * time.Second
	MinLease     = 500 * time.Millisecond
	MaxLease     = 10 * time.Minute

	DefaultPoll = 250 * time.Millisecond
	MinPoll     = 2 * time.Millisecond
	MaxPoll     = time.Minute

	DefaultCommit = 10 * time.Millisecond
	MinCommit     = time.Millisecond
	MaxCommit     = time.Second

	MaxRetention = 100 * 365 * 24 * time.Hour
)

// FromParams reads the common parameters of a URL.
func FromParams(p *driver.Params) Config {
	return Config{
		Shards:    p.Int("shards", DefaultShards, 1, MaxShards),
		Lease:     p.Duration("lease", DefaultLease, MinLease, MaxLease),
		Poll:      p.Duration("poll", DefaultPoll, MinPoll, MaxPoll),
		Commit:    p.Duration("commit", DefaultCommit, MinCommit, MaxCommit),
		Retention: p.Duration("retention", 0, 0, MaxRetention),
		NoMigrate: !p.Bool("migrate", true),
	}
}

// Complete fills in the defaults and checks the bounds. broker is for the errors.
func (c *Config) Complete(broker string) error {
	if c.Shards == 0 {
		c.Shards = DefaultShards
	}
	for _, d := range []struct {
		field *time.Duration
		def   time.Duration
	}{{&c.Lease, DefaultLease}, {&c.Poll, DefaultPoll}, {&c.Commit, DefaultCommit}} {
		if *d.field == 0 {
			*d.field = d.def
		}
	}
	if c.Shards < 1 || c.Shards > MaxShards {
		return fmt.Errorf("%s: %w: Shards is %d: want 1 to %d", broker, bus.ErrInvalid, c.Shards, MaxShards)
	}
	for _, d := range []struct {
		name          string
		value, lo, hi time.Duration
	}{
		{"Lease", c.Lease, MinLease, MaxLease},
		{"Poll", c.Poll, MinPoll, MaxPoll},
		{"Commit", c.Commit, MinCommit, MaxCommit},
		{"Retention", c.Retention, 0, MaxRetention},
	} {
		if d.value < d.lo || d.value > d.hi {
			return fmt.Errorf("%s: %w: %s is %v: want %v to %v", broker, bus.ErrInvalid, d.name, d.value, d.lo, d.hi)
		}
	}
	return nil
}

// CheckIdentifier says why a schema, or the prefix of tables, cannot be part of statements.
func CheckIdentifier(what, name string) error {
	if err := sqltext.CheckName(what, name); err != nil {
		return fmt.Errorf("%w: %w", bus.ErrInvalid, err)
	}
	return nil
}
