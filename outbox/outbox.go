package outbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

var errInvalid = bus.ErrInvalid

// Outbox writes messages into a table of the user's database, inside the user's transactions; a
// [Relay] takes them from there to a broker. It is a description, not a connection: one serves the
// whole process. It is safe for concurrent use.
type Outbox struct {
	config  Config
	prefix  string // of the tables, with the schema
	options []bus.Option
	compiler
	announcer announcer

	mu     sync.Mutex
	relays map[*Relay]struct{} // running in this process

	prune time.Time // when this process prunes the inbox next
}

// Config configures an outbox. A zero field takes its default. Writers, relays and inboxes that
// belong together need the same Schema and Prefix.
type Config struct {
	// Schema is the tables' schema on PostgreSQL: small letters, digits and _. Migrate creates it
	// if needed. Defaults to "": the connection's search_path decides.
	Schema string
	// Prefix begins the tables' names: small letters, digits and _. Defaults to "millrace_", which
	// makes millrace_outbox, millrace_inbox and a few others.
	Prefix string
	// InboxRetention is the time for which the inbox remembers handled messages. It must be longer
	// than a broker may take to deliver a message again: its retention, or the time until a replay
	// from a poison queue. At least 1 min. Defaults to 8 days, a day more than Kafka's default
	// retention.
	InboxRetention time.Duration
}

// Defaults of Config.
const (
	DefaultPrefix         = "millrace_"
	DefaultInboxRetention = 8 * 24 * time.Hour
)

// New makes an outbox. The options are those of a bus: the codecs that encode events, and the
// source. It does not connect; call [Outbox.Migrate] to create the tables.
func New(d Dialect, c Config, opts ...bus.Option) (*Outbox, error) {
	if d < Postgres || d > SQLite {
		return nil, invalid("the dialect is %v: want Postgres, MySQL or SQLite", d)
	}
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if c.InboxRetention == 0 {
		c.InboxRetention = DefaultInboxRetention
	}
	if err := checkName("Prefix", c.Prefix); err != nil {
		return nil, err
	}
	if c.InboxRetention < time.Minute {
		return nil, invalid("InboxRetention is %v: want at least 1m", c.InboxRetention)
	}
	prefix := c.Prefix
	if c.Schema != "" {
		if d != Postgres {
			return nil, invalid("Schema is %.60q: only PostgreSQL has schemas; use Prefix", c.Schema)
		}
		if err := checkName("Schema", c.Schema); err != nil {
			return nil, err
		}
		prefix = c.Schema + "." + c.Prefix
	}
	return &Outbox{
		config: c, prefix: prefix, options: opts, compiler: newCompiler(d, prefix),
		relays: map[*Relay]struct{}{},
	}, nil
}

// Execer is a transaction: *sql.Tx, *sql.Conn, *sqlx.Tx, GORM's tx.Statement.ConnPool, and other
// wrappers of database/sql. For pgx.Tx use package pgxoutbox.
//
//	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
type Execer = driver.Execer

// In returns the publisher inside of tx: its messages exist if and only if tx commits. It takes the
// options of any publisher, headers of the context included, and checks messages as every bus does.
// A refusal by one certain broker shows when a relay publishes the message. Like tx, it is for one
// goroutine. Many messages in one call are few statements: see [bus.PublishAll].
//
// After an error the messages are not in the outbox: roll back. On databases that let a transaction
// go on after an error, the caller may try again.
func (o *Outbox) In(tx Execer) bus.Publisher {
	return bus.New(&writer{outbox: o, tx: tx}, o.options...)
}

// Publish is [Outbox.In] for one event.
func (o *Outbox) Publish(ctx context.Context, tx Execer, topic string, event any, opts ...bus.PublishOption) error {
	return o.In(tx).Publish(ctx, topic, event, opts...)
}

// PublishMessages is [Outbox.In] for messages. The error is a *bus.PublishError, index-aligned with
// msgs.
func (o *Outbox) PublishMessages(ctx context.Context, tx Execer, topic string, msgs ...*bus.Message) error {
	return o.In(tx).PublishMessages(ctx, topic, msgs...)
}

// Do runs f in a transaction with its publisher, and commits if f returns nil. The relays then take
// up the messages published through p without waiting for their next look.
func Do[Tx any](ctx context.Context, o *Outbox, begin Transactor[Tx], f func(tx Tx, p bus.Publisher) error) error {
	var w *writer
	err := begin.run(ctx, func(tx Tx, x Execer) error {
		w = &writer{outbox: o, tx: x}
		return f(tx, bus.New(w, o.options...))
	})
	if err == nil && w.wrote {
		o.committed(ctx, func(ctx context.Context, text string) error {
			return begin(ctx, func(_ Tx, x Execer) error { return o.notify(ctx, x, text) })
		})
	}
	return err
}

// Committed tells the relays that a publishing transaction has committed. Relays of this process
// hear of it at once. On PostgreSQL relays of other processes hear of it by a notification through
// db, which must not be in a transaction; nil sends none. Calling it is optional: relays also look
// by themselves, and [Do] and [Once] call it. It does not wait.
func (o *Outbox) Committed(db Execer) {
	if db == nil {
		o.wake()
		return
	}
	o.committed(context.Background(), func(ctx context.Context, text string) error { return o.notify(ctx, db, text) })
}

func (o *Outbox) notify(ctx context.Context, x Execer, channel string) error {
	_, err := x.ExecContext(ctx, "SELECT pg_notify($1, '')", channel)
	return err
}

// committed tells the relays, with the values of ctx.
func (o *Outbox) committed(ctx context.Context, notify func(ctx context.Context, channel string) error) {
	o.wake()
	if o.dialect == Postgres {
		ctx = context.WithoutCancel(ctx)
		o.announcer.announce(func(timeout time.Duration) error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			return notify(ctx, o.Channel())
		})
	}
}

// Channel returns the name of the channel on which PostgreSQL tells relays of commits.
func (o *Outbox) Channel() string { return fmt.Sprintf("millrace_outbox_%x", uint32(o.lockClass())) }

// wake makes the relays of this process look now, and often for a while.
func (o *Outbox) wake() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for r := range o.relays {
		r.wake()
	}
}
