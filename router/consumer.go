package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// consumer runs the handlers of one topic and group: it pulls deliveries from the driver (intake.go), orders them by
// key and spreads them over workers (schedule.go), which call the handlers (worker.go) and hand back what is to be
// settled (settle.go); lanes come and go meanwhile (lanes.go).
//
// One lock, mu, guards all of its state; it is taken once for a batch, and never held over a call of the driver or
// of a handler.
type consumer struct {
	core  *core
	sub   bus.Subscription
	table *routeTable
	cfg   consumerConfig
	log   *slog.Logger

	ctx    context.Context // of everything that runs handlers; ends when a drain's patience does
	cancel context.CancelCauseFunc
	intake context.Context // of Receive; ends when the drain begins
	close  context.CancelFunc

	source bus.Source // set before the first worker starts

	mu     sync.Mutex
	state  State
	err    error // the last error, for health
	paused bool
	lanes  map[int32]*lane

	// Scheduler.
	keys     keyTable
	ready    list
	batches  []*batchQueue
	held     heldTasks
	lot      parkingLot
	timer    *time.Timer
	timerAt  time.Time // when it goes off; zero: it does not
	free     *task
	inFlight int
	bytes    int
	full     bool // the intake waits for room
	pausing  suspension

	// Workers.
	workers  []*worker
	idle     int
	running  int // workers that have not ended
	watchdog *time.Timer
	watching bool       // the watchdog is running
	work     *sync.Cond // there is something to take, or the end has come
	room     *sync.Cond // there may be room for more in flight
	draining bool

	// Parking.
	canPark         bool      // messages may be parked at the broker
	canFetch        bool      // and are handled that are parked there
	ended           uint64    // messages that were settled since the start
	reliefFrom      time.Time // when relieve began to watch
	reliefEnded     uint64    // ended at that time
	toPark          []*task
	fetchedMessages int
	fetchedBytes    int
	fetching        sync.Mutex // held while the driver fetches
	parks           *sync.Cond // toPark is not empty, or finished
	fetches         *sync.Cond // parked messages are due, or draining
	parksEnded      bool       // nothing more will be parked
	parked          chan struct{}
	poisoning       sync.WaitGroup // parked messages whose poison entries are being written

	// Settling.
	done      []*task
	unsettled int // tasks that the settler has
	spare     []*task
	finished  bool       // no more tasks will be done
	settling  *sync.Cond // done is not empty, or finished
	settled   chan struct{}

	stopping sync.Once
	stopped  chan struct{}
	skipped  uint64
}

type consumerConfig struct {
	workers   int
	inFlight  inFlight
	unordered bool
	strict    bool
	guarantee Level
	// transactional: what handlers emit is published with the settlement.
	transactional bool
}

func newConsumer(c *core, sub bus.Subscription, cfg consumerConfig, table *routeTable) *consumer {
	k := &consumer{
		core: c, sub: sub, cfg: cfg, table: table,
		log:     c.log.With("topic", sub.Topic, "group", sub.Group),
		lanes:   map[int32]*lane{},
		keys:    newKeyTable(cfg.inFlight.messages),
		lot:     newParkingLot(cfg.unordered),
		parked:  make(chan struct{}),
		settled: make(chan struct{}),
		stopped: make(chan struct{}),
	}
	k.work, k.room, k.settling = sync.NewCond(&k.mu), sync.NewCond(&k.mu), sync.NewCond(&k.mu)
	k.parks, k.fetches = sync.NewCond(&k.mu), sync.NewCond(&k.mu)
	k.ctx, k.cancel = context.WithCancelCause(context.Background())
	k.intake, k.close = context.WithCancel(k.ctx)
	for _, r := range table.routes {
		if r.batch != nil {
			k.batches = append(k.batches, r.queue)
		}
	}
	return k
}

// start subscribes and begins to consume. While the broker is away it tries again until the consumer is stopped.
func (c *consumer) start() error {
	c.setState(StateStarting, nil)
	var source bus.Source
	err := c.checkJoining()
	if err == nil {
		source, err = c.subscribe()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && !c.draining {
		c.source, c.state, c.err = source, StateRunning, nil
		c.watchdog = time.AfterFunc(time.Hour, c.watch)
		c.watchdog.Stop()
		_, c.canFetch = source.(bus.ParkingSource)
		c.canPark = c.canFetch && c.cfg.guarantee != AtMostOnce // a crash while one is being parked repeats it
		go c.settler()
		go c.pump()
		if c.canFetch {
			go c.parker()
			go c.fetcher()
		} else {
			close(c.parked)
		}
		return nil
	}
	defer close(c.stopped)
	if !c.draining {
		c.state, c.err = StateFailed, err
		return err
	}
	c.state, c.err = StateStopped, nil
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		c.mu.Unlock()
		err = source.Close(ctx)
		c.mu.Lock()
	}
	return fmt.Errorf("topic %q, group %q: stopped before it had started: %w", c.sub.Topic, c.sub.Group, errors.Join(bus.ErrClosed, err))
}

func (c *consumer) subscribe() (bus.Source, error) {
	for b := (backoff{}); ; {
		source, err := c.core.bus.Driver().Subscribe(c.intake, c.sub, c)
		if err == nil {
			return source, nil
		}
		err = fmt.Errorf("subscribe group %q to topic %q: %w", c.sub.Group, c.sub.Topic, err)
		if c.intake.Err() != nil || !bus.IsRetryable(err) {
			return nil, err
		}
		c.setState(StateStarting, err)
		c.log.Warn("cannot subscribe yet", "err", err)
		b.wait(c.intake)
	}
}

func (c *consumer) setState(s State, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.err = s, err
}

// errDrained is the cause with which handlers are cancelled that outlast the drain.
var errDrained = errors.New("the drain timeout has passed")

// stop drains: no new message, running handlers to their end within ctx, then all settlements, then the source is
// closed. It is idempotent; each call waits for the end.
func (c *consumer) stop(ctx context.Context) error {
	c.stopping.Do(func() { go c.drain(ctx) })
	<-c.stopped
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *consumer) drain(ctx context.Context) {
	c.close()
	c.mu.Lock()
	c.draining = true
	if c.source == nil { // start has not come so far: it ends by the intake's context
		c.mu.Unlock()
		return
	}
	failed := c.state == StateFailed
	if !failed {
		c.state = StateDraining
	}
	c.work.Broadcast()
	c.room.Broadcast()
	c.fetches.Broadcast()
	patience := context.AfterFunc(ctx, func() {
		c.cancel(errDrained)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.work.Broadcast()
	})
	defer patience()
	var err error
	for c.running > 0 {
		if ctx.Err() != nil { // handlers that do not heed their context are left behind
			err = fmt.Errorf("topic %q: %d handlers of group %q still ran when the drain timeout had passed; their messages come again", c.sub.Topic, c.running, c.sub.Group)
			break
		}
		c.work.Wait()
	}
	for _, w := range c.workers {
		c.reap(w) // of those that are left behind
	}
	c.parkHeld(func(t *task) bool { return !t.lane.gone })
	c.parksEnded = true
	c.parks.Broadcast()
	c.mu.Unlock()
	err = errors.Join(err, c.awaitEnd(ctx, c.parked))
	c.mu.Lock()
	c.finished = true
	c.settling.Broadcast()
	c.mu.Unlock()
	err = errors.Join(err, c.awaitEnd(ctx, c.settled))
	// Closing is worth a moment even if nothing is left of the drain's time.
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) > closeTimeout {
		closing = ctx
	}
	if cerr := c.source.Close(closing); cerr != nil && !errors.Is(cerr, bus.ErrClosed) {
		err = errors.Join(err, fmt.Errorf("close topic %q: %w", c.sub.Topic, cerr))
	}
	c.cancel(bus.ErrClosed)
	c.mu.Lock()
	c.watchdog.Stop()
	if c.timer != nil {
		c.timer.Stop()
	}
	if !failed {
		c.state, c.err = StateStopped, err
	}
	c.mu.Unlock()
	close(c.stopped)
}

// awaitEnd waits for what makes results durable.
func (c *consumer) awaitEnd(ctx context.Context, ended <-chan struct{}) error {
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("topic %q: settling of group %q did not end in time: %w", c.sub.Topic, c.sub.Group, ctx.Err())
	}
}

const closeTimeout = 5 * time.Second

// pause and resume stop and continue the intake and the start of handlers.
func (c *consumer) pause(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = on
	c.room.Broadcast()
	c.wakeWorkers()
}
