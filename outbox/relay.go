package outbox

import (
	"context"
	"database/sql"
	"errors"
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// RelayConfig configures a relay. A field that is zero has its default.
type RelayConfig struct {
	// Poll is the longest pause between two looks for messages. A relay that finds something, or that is told of a commit,
	// looks again after 1 ms, and then less often by a quarter each time. 1 ms to 1 min. Defaults to 100 ms.
	Poll time.Duration
	// Lease is how long the messages of a relay that died wait for another relay. 500 ms to 10 min. Defaults to 10 s.
	Lease time.Duration
	// Batch is how many messages are published in one call at most. 1 to 10,000. Defaults to 500.
	Batch int
	// PublishTimeout bounds a call, if the broker's driver does not. At least 10 ms. Defaults to 30 s.
	PublishTimeout time.Duration
	// DrainTimeout bounds how long Run waits at its end for calls under way, and after that, if it is 5 s or more, for the
	// database to delete what was sent. What is published later, or not deleted, is published again by the next relay.
	// Defaults to 10 s.
	DrainTimeout time.Duration
	// Listen hears of commits in other processes: pgxoutbox.Listen on PostgreSQL. It blocks, calls ready when it hears and
	// heard for each word on the channel, and returns when ctx ends or the connection breaks; then it is called again.
	// Defaults to nil: other processes' messages are found by looking.
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

// Relay takes committed messages out of an outbox and publishes them on a bus. Any number of relays of one outbox, in any
// number of processes, share the work; messages of one topic and key stay in their order throughout. Make one with
// [Outbox.NewRelay].
type Relay struct {
	outbox *Outbox
	db     *sql.DB
	bus    *bus.Bus
	config RelayConfig
	keeper keeper
	name   string // of the outbox; set by Run
	woken  chan struct{}

	running  atomic.Bool
	sent     atomic.Int64
	poisoned atomic.Int64
	parked   atomic.Int64
	failures atomic.Int64
	blocked  atomic.Int64
}

// NewRelay makes a relay from the outbox in db to the bus. [Relay.Run] runs it. db needs two connections or more, unless it
// is SQLite.
func (o *Outbox) NewRelay(db *sql.DB, to *bus.Bus, c RelayConfig) (*Relay, error) {
	if db == nil || to == nil {
		return nil, invalid("a relay needs a database and a bus")
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	r := &Relay{outbox: o, db: db, bus: to, config: c, woken: make(chan struct{}, 1)}
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

// Run relays until ctx ends. Then it waits for the calls under way, deletes what was sent, and gives up its share, so that a
// clean stop repeats nothing; the error is nil. Errors of the database or the broker do not end it: it tries again, with
// pauses that grow, and logs to the bus's log. What ends it is tables that do not fit this program, and a bus that was
// closed. It can be called once.
func (r *Relay) Run(ctx context.Context) error {
	if r.running.Swap(true) {
		return errors.New("outbox: the relay runs already, or has run")
	}
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
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if lerr := r.keeper.leave(leaving); lerr != nil {
		r.failed(lerr) // the lease ends by itself
	}
	return err
}

// awaitTables waits for a database that answers, and says whether its tables fit this program. Then name is set.
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
		case <-time.After(backoff(tries)):
		}
	}
}

const leaveTimeout = 5 * time.Second

// listen hears of commits in other processes.
func (r *Relay) listen(ctx context.Context) {
	var tries int
	for ctx.Err() == nil {
		err := r.config.Listen(ctx, r.outbox.Channel(), func() {
			tries = 0
			r.wake() // something may have been said before
		}, r.wake)
		if err != nil && ctx.Err() == nil {
			r.bus.Logger().Warn("outbox: listening for commits failed", "error", err)
		}
		tries++
		select {
		case <-ctx.Done():
		case <-time.After(backoff(tries)):
		}
	}
}

// backoff is the pause after the n-th failure in a row: 100 ms doubling to 5 s, of which the upper half is random.
func backoff(n int) time.Duration {
	d := min(100*time.Millisecond<<min(n-1, 10), 5*time.Second)
	return d/2 + rand.N(d/2)
}

func (r *Relay) failed(err error) {
	r.failures.Add(1)
	r.bus.Logger().Warn("outbox: the relay failed and tries again", "error", err)
}

// RelayStats is what a relay has done and holds, for metrics. What is in the tables, [Outbox.Status] tells.
type RelayStats struct {
	// Sent counts messages that the broker has taken, Poisoned those that it refused for good and that are in its poison
	// store now, Parked those that even that refused, which wait in the table.
	Sent, Poisoned, Parked int64
	// Failures counts errors of the database and failed tries to publish a message.
	Failures int64
	// Blocked is how many keys wait now because their first message failed.
	Blocked int64
	// Buckets is this relay's share of 64.
	Buckets int
	// LeaseLosses counts how often the relay lost its share, because it could not renew it in time.
	LeaseLosses int
}

// Stats returns the relay's figures. Safe at any time.
func (r *Relay) Stats() RelayStats {
	k := &r.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	return RelayStats{
		Sent: r.sent.Load(), Poisoned: r.poisoned.Load(), Parked: r.parked.Load(), Failures: r.failures.Load(), Blocked: r.blocked.Load(),
		Buckets: bits.OnesCount64(k.mine), LeaseLosses: k.losses,
	}
}
