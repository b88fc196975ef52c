package outbox

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/ratelog"
)

// RelayConfig configures a relay. A zero field takes its default.
type RelayConfig struct {
	// Poll is the longest pause between two looks for messages. After it finds a message, or hears
	// of a commit, a relay looks again after 1 ms; each further pause is a quarter longer. 1 ms to
	// 1 min. Defaults to 100 ms.
	Poll time.Duration
	// Lease is the time for which the messages of a dead relay wait for another relay. 500 ms to 10
	// min. Defaults to 10 s.
	Lease time.Duration
	// Batch bounds the messages of one publish call. 1 to 10,000. Defaults to 500.
	Batch int
	// PublishTimeout bounds a call, if the broker's driver does not. 10 ms to 1 h. Defaults to 30
	// s.
	PublishTimeout time.Duration
	// DrainTimeout bounds how long Run waits at its end for pending calls. If it is 5 s or more, it
	// then also bounds the wait for the database to delete sent messages. A message published
	// later, or not deleted, is published again by the next relay. 1 ms to 1 h. Defaults to 10 s.
	DrainTimeout time.Duration
	// Listen hears of commits in other processes: pgxoutbox.Listen on PostgreSQL. It blocks, calls
	// ready once it listens, and heard for each notice on the channel. It returns when ctx ends or
	// the connection breaks; then the relay calls it again. Defaults to nil: the relay finds other
	// processes' messages by looking.
	Listen func(ctx context.Context, channel string, ready, heard func()) error
}

// Defaults of RelayConfig.
const (
	DefaultPoll           = 100 * time.Millisecond
	DefaultLease          = 10 * time.Second
	DefaultBatch          = 500
	DefaultPublishTimeout = 30 * time.Second
	DefaultDrainTimeout   = 10 * time.Second
)

func (c *RelayConfig) complete() error {
	if c.Batch == 0 {
		c.Batch = DefaultBatch
	}
	if c.Batch < 1 || c.Batch > 10_000 {
		return invalid("Batch is %d: want 1 to 10,000", c.Batch)
	}
	for _, d := range []struct {
		name        string
		field       *time.Duration
		def, lo, hi time.Duration
	}{
		{"Poll", &c.Poll, DefaultPoll, time.Millisecond, time.Minute},
		{"Lease", &c.Lease, DefaultLease, 500 * time.Millisecond, 10 * time.Minute},
		{"PublishTimeout", &c.PublishTimeout, DefaultPublishTimeout, 10 * time.Millisecond, time.Hour},
		{"DrainTimeout", &c.DrainTimeout, DefaultDrainTimeout, time.Millisecond, time.Hour},
	} {
		if *d.field == 0 {
			*d.field = d.def
		}
		if *d.field < d.lo || *d.field > d.hi {
			return invalid("%s is %v: want %v to %v", d.name, *d.field, d.lo, d.hi)
		}
	}
	return nil
}

// Relay takes committed messages out of an outbox and publishes them on a bus. Any number of relays
// of one outbox, in any number of processes, share the work; messages of one topic and key stay in
// order throughout. Make one with [Outbox.NewRelay]. It is safe for concurrent use.
type Relay struct {
	outbox *Outbox
	db     *sql.DB
	bus    *bus.Bus
	config RelayConfig
	keeper keeper
	name   string // of the outbox; set by Run
	woken  chan struct{}
	log    *ratelog.Log

	running  atomic.Bool
	sent     atomic.Int64
	poisoned atomic.Int64
	parked   atomic.Int64
	failures atomic.Int64
	blocked  atomic.Int64
}

// NewRelay makes a relay from the outbox in db to the bus. [Relay.Run] runs it. db needs two
// connections or more, except on SQLite. It fails if a field of c is out of bounds.
func (o *Outbox) NewRelay(db *sql.DB, to *bus.Bus, c RelayConfig) (*Relay, error) {
	if db == nil || to == nil {
		return nil, invalid("a relay needs a database and a bus")
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	r := &Relay{outbox: o, db: db, bus: to, config: c, woken: make(chan struct{}, 1), log: ratelog.New(to.Logger())}
	r.keeper = keeper{outbox: o, db: db, lease: c.Lease, id: bus.NewID(), changed: make(chan struct{}, 1), arrived: r.wake}
	return r, nil
}

// wake makes the relay look now.
func (r *Relay) wake() {
	select {
	case r.woken <- struct{}{}:
	default:
	}
}

// Run relays until ctx ends. Then it waits for pending calls, deletes the sent messages, and gives
// up its share, so that a clean stop repeats nothing; the error is nil.
//
// Errors of the database or the broker do not end it: it tries again, with growing pauses, and logs
// to the bus's log. It ends with an error if the tables do not fit this program, or the bus is
// closed. Call it once.
func (r *Relay) Run(ctx context.Context) error {
	if r.running.Swap(true) {
		return errors.New("outbox: the relay runs already, or has run: make another relay")
	}
	defer r.log.Flush()
	if fit, err := r.awaitTables(ctx); !fit {
		return err
	}
	r.outbox.mu.Lock()
	r.outbox.relays[r] = struct{}{}
	r.outbox.mu.Unlock()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	work.Go(func() { r.keeper.run(background, r.failed) })
	if r.config.Listen != nil {
		work.Go(func() { r.listen(background) })
	}
	err := newPump(r).run(ctx)
	r.outbox.mu.Lock()
	delete(r.outbox.relays, r)
	r.outbox.mu.Unlock()
	stop()
	work.Wait()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTimeout)
	defer cancel()
	if lerr := r.keeper.giveUp(ending); lerr != nil {
		r.failed(lerr) // the lease ends by itself
	}
	return err
}

// awaitTables waits until the database answers, and reports whether its tables fit this program.
// Then name is set.
func (r *Relay) awaitTables(ctx context.Context) (fit bool, err error) {
	for tries := 1; ; tries++ {
		version, err := r.outbox.version(ctx, r.db)
		if err == nil {
			if err := r.outbox.checkVersion(version); err != nil {
				return false, err
			}
			if r.name, err = r.outbox.name(ctx, r.db); err == nil {
				return true, nil
			}
		}
		if ctx.Err() == nil {
			r.failed(err)
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(backoff.Pause(tries)):
		}
	}
}

const giveUpTimeout = 5 * time.Second

// listen hears of commits in other processes.
func (r *Relay) listen(ctx context.Context) {
	var tries int
	for ctx.Err() == nil {
		err := r.config.Listen(ctx, r.outbox.Channel(), func() {
			tries = 0
			r.wake() // a commit may have been announced before
		}, r.wake)
		if err != nil && ctx.Err() == nil {
			r.log.Tell(slog.LevelWarn, "outbox: listening for commits failed", nil, "err", err)
		}
		tries++
		select {
		case <-ctx.Done():
		case <-time.After(backoff.Pause(tries)):
		}
	}
}

func (r *Relay) failed(err error) {
	r.failures.Add(1)
	r.log.Tell(slog.LevelWarn, "outbox: the relay failed and tries again", nil, "err", err)
}

// RelayStats holds a relay's counters and current state, for metrics. [Outbox.Status] describes the
// tables.
type RelayStats struct {
	// Sent counts messages that the broker has taken. Poisoned counts messages that it refused for
	// good and that are in its poison store. Parked counts messages that the poison store refused
	// too; they wait in the table.
	Sent, Poisoned, Parked int64
	// Failures counts errors of the database and failed tries to publish a message.
	Failures int64
	// Blocked is the number of keys that wait because their first message failed.
	Blocked int64
	// Buckets is this relay's share of 64.
	Buckets int
	// LeaseLosses counts how often the relay lost its share, because it could not renew it in time.
	LeaseLosses int
}

// Stats returns the relay's figures. It is safe for concurrent use.
func (r *Relay) Stats() RelayStats {
	k := &r.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	return RelayStats{
		Sent: r.sent.Load(), Poisoned: r.poisoned.Load(), Parked: r.parked.Load(), Failures: r.failures.Load(), Blocked: r.blocked.Load(),
		Buckets: bits.OnesCount64(k.mine), LeaseLosses: k.losses,
	}
}
