package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/condition"
	"github.com/millrace-go/millrace/internal/ratelog"
)

// consumer runs the handlers of one topic and group. It pulls deliveries from the driver
// (intake.go), orders them by key and spreads them over workers (schedule.go). Workers call the
// handlers (worker.go) and hand the tasks back to their next step (finish.go), most of them to be
// settled (settle.go). Lanes come and go meanwhile (lanes.go). state.go has the places of a task.
//
// One lock, mu, guards all of its state; it is taken once for a batch, and never held over a call of the driver or
// of a handler.
type consumer struct {
	core  *core
	sub   bus.Subscription
	table *routeTable
	cfg   consumerConfig
	log   *slog.Logger
	blame *ratelog.Log // for the failures of messages

	ctx    context.Context // of everything that runs handlers; ends when a drain's patience does
	cancel context.CancelCauseFunc
	intake context.Context // of Receive; ends when the drain begins
	close  context.CancelFunc

	source bus.Source // set before the first worker starts

	conditions *condition.Set // what is wrong with the subscription

	mu       sync.Mutex
	state    State // of its life
	err      error // why it starts slowly, has failed, or could not receive
	standing standing
	away     error // why the broker cannot be reached, by the driver's word; nil: it can
	paused   bool
	draining bool
	lanes    map[int32]*lane    // that are owned
	leaving  map[bus.Lane]*lane // that are being handed over
	canPark  bool               // messages may be parked at the broker
	canFetch bool               // and are handled that are parked there

	// Scheduler: the tasks that wait here, and what wakes them.
	keys      keyTable
	ready     list
	batches   []*batchQueue
	nextBatch int // the queue to look at first
	held      heldTasks
	timer     *time.Timer
	timerAt   time.Time // when it goes off; zero: it does not
	pausing   suspension

	flight     flight
	crew       crew
	lot        parkingLot
	parking    parking
	stuck      stuck
	relief     relief
	fetching   fetching
	cancelling cancelling
	poisoning  poisoning
	settling   settling
	skipping   skipping
	unknown    atomic.Uint64 // messages in the poison queue that no handler takes

	// Drain.
	stopping sync.Once
	patience context.Context
	hurry    context.CancelFunc
	stopped  chan struct{}
}

// flight is the tasks in flight, and the room for more. Those that were fetched from the broker count beside the others.
type flight struct {
	messages, bytes               int
	fetchedMessages, fetchedBytes int
	full                          bool       // the intake waits for room
	room                          *sync.Cond // there may be room for more
	free                          *task      // the free list
}

// crew is the workers.
type crew struct {
	workers  []*worker
	idle     int
	running  int // workers and poisoners that have not ended
	watchdog *time.Timer
	watching bool       // the watchdog is running
	work     *sync.Cond // there is something to take, or the end has come
}

// parking is the parker's: tasks on their way to the broker.
type parking struct {
	queue      []*task
	order      uint64         // of the task that came last
	calling    []*task        // that the driver parks in this moment
	wake       *sync.Cond     // there is something to park, or room for it, or the end has come
	ended      bool           // nothing more will be parked
	overfull   bool           // too much is parked
	unparkable map[string]int // messages in flight that the broker never parks, by key
	proven     int            // size of the largest message that the broker has parked
	over       chan struct{}
}

// stuck is the tasks that could not be parked.
type stuck struct {
	lines   []*stuckTasks
	byKey   map[string]*stuckTasks
	due     time.Time // when they are tried again
	backoff backoff.Backoff
	tries   int // since the drain began
}

// relief is how fast messages are settled, by which relieve knows whether room must be made.
type relief struct {
	settled     uint64    // since the start
	from        time.Time // when relieve began to watch
	settledThen uint64    // settled at that time
}

// fetching is the fetcher's.
type fetching struct {
	calling chan struct{} // full while the driver fetches
	wake    *sync.Cond    // parked messages are due, or draining
}

// cancelling is the canceller's.
type cancelling struct {
	queue []*task
	wake  *sync.Cond // there are cancellations, or the parker has ended a call, or draining
}

// poisoning is the poisoners': tasks on their way into the poison queue.
type poisoning struct {
	queue   list
	running int // poisoners that have not ended
	trouble poisonTrouble
}

// settling is the settler's: tasks that are done.
type settling struct {
	queue    []*task
	underWay int // tasks that the settler has
	spare    []*task
	ended    bool       // no more tasks will be done
	wake     *sync.Cond // the queue is not empty, or ended
	over     chan struct{}
}

type consumerConfig struct {
	workers      int
	inFlight     inFlight
	unordered    bool
	unknownWaits bool // a key waits for its messages in the poison queue that no handler takes
	guarantee    Level
	// transactional: the messages that handlers emit are published with the settlement.
	transactional bool
}

func newConsumer(c *core, sub bus.Subscription, cfg consumerConfig, table *routeTable) *consumer {
	log := c.log.With("topic", sub.Topic, "group", sub.Group)
	k := &consumer{
		core: c, sub: sub, cfg: cfg, table: table,
		log: log, blame: ratelog.New(log), conditions: condition.NewSet(log),
		state: StateStarting, lanes: map[int32]*lane{}, leaving: map[bus.Lane]*lane{},
		keys:     newKeyTable(cfg.inFlight.messages),
		lot:      newParkingLot(cfg.unordered),
		parking:  parking{unparkable: map[string]int{}, over: make(chan struct{})},
		stuck:    stuck{byKey: map[string]*stuckTasks{}},
		fetching: fetching{calling: make(chan struct{}, 1)},
		settling: settling{over: make(chan struct{})},
		stopped:  make(chan struct{}),
	}
	for _, cond := range []**sync.Cond{&k.flight.room, &k.crew.work, &k.parking.wake, &k.fetching.wake, &k.cancelling.wake, &k.settling.wake} {
		*cond = sync.NewCond(&k.mu)
	}
	k.ctx, k.cancel = context.WithCancelCause(c.values)
	k.intake, k.close = context.WithCancel(k.ctx)
	k.patience, k.hurry = context.WithCancel(context.Background())
	for _, r := range table.routes {
		if r.batch != nil {
			k.batches = append(k.batches, r.queue)
		}
	}
	k.stand()
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
		c.stand()
		c.crew.watchdog = time.AfterFunc(time.Hour, c.watch)
		c.crew.watchdog.Stop()
		_, c.canFetch = source.(driver.ParkingSource)
		c.canPark = c.canFetch && c.cfg.guarantee != AtMostOnce // a crash while one is being parked repeats it
		go c.settler()
		go c.pump()
		if c.canFetch {
			var parkers sync.WaitGroup
			parkers.Go(c.parker)
			parkers.Go(c.canceller)
			go func() {
				parkers.Wait()
				close(c.parking.over)
			}()
			go c.fetcher()
		} else {
			close(c.parking.over)
		}
		return nil
	}
	defer close(c.stopped)
	defer c.conditions.Close()
	if !c.draining {
		c.state, c.err = StateFailed, err
		c.stand()
		return err
	}
	c.state, c.err = StateStopped, nil
	c.stand()
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
	for b := (backoff.Backoff{}); ; {
		source, err := c.core.bus.Driver().Subscribe(c.intake, c.sub, c)
		if err == nil {
			if err = c.lacking(source); err == nil {
				c.conditions.Note(subscribing, nil)
				return source, nil
			}
			closing, cancel := context.WithTimeout(context.Background(), closeTimeout)
			err = errors.Join(err, source.Close(closing))
			cancel()
		}
		err = fmt.Errorf("subscribe group %q to topic %q: %w", c.sub.Group, c.sub.Topic, err)
		if c.intake.Err() != nil || !bus.IsRetryable(err) {
			return nil, err
		}
		c.setState(StateStarting, err)
		c.conditions.Note(subscribing, err)
		b.Wait(c.intake)
	}
}

// lacking returns an error if a source lacks a feature that its driver claims and this consumer
// needs. A driver around another may hide it.
func (c *consumer) lacking(source bus.Source) error {
	has := c.core.bus.Driver().Capabilities()
	_, transacts := source.(driver.TransactionalSource)
	_, joins := source.(driver.JoiningSource)
	_, parks := source.(driver.ParkingSource)
	joining := slices.ContainsFunc(c.table.routes, func(r *Route) bool { return r.joining != nil })
	for what, lacks := range map[string]bool{
		"driver.TransactionalSource": c.cfg.transactional && !transacts,
		"driver.JoiningSource":       joining && !joins,
		"driver.ParkingSource":       has.Parking && !parks,
	} {
		if lacks {
			return fmt.Errorf("%w: the driver %s claims it, but its source (%T) is no %s", bus.ErrUnsupported, has.Broker, source, what)
		}
	}
	return nil
}

func (c *consumer) setState(s State, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.err = s, err
	c.stand()
}

// pause and resume stop and continue the intake and the start of handlers.
func (c *consumer) pause(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = on
	c.stand()
	c.flight.room.Broadcast()
	c.fetching.wake.Broadcast()
	c.wakeWorkers()
}
