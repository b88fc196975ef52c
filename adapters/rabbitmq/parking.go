package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	lot "github.com/millrace-go/millrace/internal/parking"
)

// maxParked is how many messages may be parked in a lane. There must be room for commands and later
// revisions.
const maxParked = 50_000

// parkingBounds are constants, but for tests.
type parkingBounds struct {
	// window is how many unsettled records the broker delivers: the most that AMQP can say. (No
	// bound is 2,000 to a quorum queue, seen on 3.10.8.)
	window int
	// refresh is for how long a record is held. The broker ends a channel over a message that is
	// not settled for its consumer_timeout, 30 minutes by default.
	refresh time.Duration
	// marker is how long an owner waits for its marker, and for anything else, before it sends
	// another.
	marker time.Duration
	// probe is how long an owner waits for its probe.
	probe time.Duration
	// tick is how often an owner looks for records to refresh, and for records that do not come.
	tick time.Duration
}

var defaultParkingBounds = parkingBounds{window: 1<<16 - 1, refresh: 10 * time.Minute, marker: 5 * time.Second, probe: 5 * time.Second, tick: time.Second}

// parking is the owner's knowledge of its lane's parking queue. All parked messages are delivered
// to the owner and held unsettled, on a channel of its own; it keeps no bodies. To fetch a message,
// the owner gives it back: it comes again at once.
//
// The lane's queue decides which member is the owner. So a member that registers here owns the lane
// or has just lost it. It is active here as soon as the former owner has closed its channel. By
// then the queue holds all messages that a former owner has parked and settled at their origin: a
// marker that is sent from there on comes behind them. A record that comes behind the marker
// without being of this ownership is adopted.
//
// One goroutine reads the deliveries and never waits for the broker; another carries out the
// reader's requests. mu guards the fields; nothing is sent on the channel after end.
type parking struct {
	source     *source
	lane       bus.Lane
	of         *lane
	queue      string
	id         string // names this ownership in its markers
	bounds     parkingBounds
	ch         *amqp.Channel
	deliveries <-chan amqp.Delivery
	closed     chan struct{} // closed when the channel has ended
	cause      error         // why, set before
	ctx        context.Context
	cancel     context.CancelFunc // end calls it
	workers    sync.WaitGroup

	telling sync.Mutex // held while the observer is told

	mu        sync.Mutex
	ended     bool
	entries   map[int64]*parkedEntry
	settled   map[int64]*parkedEntry // settled records that may still come
	owed      int                    // of how many of these
	quiet     chan struct{}          // has a token when owed has become 0
	origins   map[int64]int64        // the positions of messages that are perhaps parked, by their positions in the lane
	loaded    time.Time              // when all was read
	clock     lot.Clock              // gives out positions
	open      int                    // deliveries that are not settled
	strangers map[uint64]stranger    // held, and not understood: see hold
	carried   map[string]bool        // the names of commands that were carried out, or are being so
	commands  []amqp.Delivery        // to be carried out
	copies    []parkedCopy           // to be written
	copyBytes int
	work      chan struct{} // has a token when there may be something in these
	renewing  int           // given back by refresh and not here again
	due       []int64       // to be given back by refresh
	acks      uint64        // how many were sent
	applied   uint64        // up to which of these the queue has them
	looking   bool          // lookBehind is at it
	probing   probing

	rpc sync.Mutex // held for each request on the channel that is answered
}

// stranger is a record that is held and no parked message.
type stranger struct {
	since   time.Time
	marker  bool
	copying bool
}

// parkedEntry is one parked message.
type parkedEntry struct {
	tag      uint64 // of the record that is held unsettled; 0 while none is
	revision int64  // of the last record that counted
	copied   int64  // which copy of the revision it was
	stored   int64  // the last revision that the queue is known to have
	given    int64  // the last revision that was given out
	id       uint64 // the hash of the message's id
	size     int    // of that record's body
	coming   int    // how many records are on the way
	unknown  bool   // nobody knows whether it is parked
	copying  bool   // a copy is being written
	renewing bool   // given back by refresh
	turned   bool   // given back by turn
	wanted   *wanted
	since    time.Time // when it was delivered
}

// openParking registers with the lane's parking queue, and reads it. It returns the parked messages
// to tell the router. After that, start goes on.
func (c *consumer) openParking(ctx context.Context) ([]driver.Parked, error) {
	ch, err := c.session.conn.Channel()
	if err != nil {
		return nil, err
	}
	p := newParking(c.lane, c.own.lane, c.lane.source.d.parking)
	p.ch = ch
	closes := ch.NotifyClose(make(chan *amqp.Error, 1))
	go func() {
		p.cause = errEnded
		if err := <-closes; err != nil {
			p.cause = err
		}
		close(p.closed)
	}()
	c.parking = p
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := start(func() (struct{}, error) { return struct{}{}, p.mark(ctx, parkMarker, p.id+"/first") })
	if err := ch.Qos(p.bounds.window, 0, false); err != nil {
		return nil, err
	}
	if err := c.confirmed(ctx, first); err != nil {
		return nil, fmt.Errorf("queue %q: %w", p.queue, err)
	}
	if p.deliveries, err = ch.Consume(p.queue, p.queue, false, false, false, false, nil); err != nil {
		return nil, err
	}
	go func() {
		select {
		case <-c.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	told, err := p.load(ctx, first)
	if err != nil {
		return nil, fmt.Errorf("read what is parked: %w", err)
	}
	c.own.park(p)
	return told, nil
}

func newParking(l *lane, own bus.Lane, bounds parkingBounds) *parking {
	p := &parking{
		source: l.source, lane: own, of: l, queue: parkedName(l.source.group, int(l.id)), id: bus.NewID(), bounds: bounds, closed: make(chan struct{}),
		entries: map[int64]*parkedEntry{}, settled: map[int64]*parkedEntry{}, quiet: make(chan struct{}, 1), origins: map[int64]int64{},
		strangers: map[uint64]stranger{}, carried: map[string]bool{}, work: make(chan struct{}, 1),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

var errEnded = errors.New("the broker ended the consumer of the parking queue")

// start begins to read on, and to carry out commands. The router knows the lane and its parked
// messages by now.
func (p *parking) start() {
	p.workers.Go(p.read)
	p.workers.Go(p.write)
}

// mark sends a marker or a probe.
func (p *parking) mark(ctx context.Context, kind, name string) error {
	ctx, cancel := context.WithTimeout(ctx, p.bounds.marker)
	defer cancel()
	return p.source.d.pub.send(ctx, 1, func(_ int, x *parcel) error {
		x.key = p.queue
		x.Publishing = amqp.Publishing{Headers: amqp.Table{parkHeader: kind}, MessageId: name, DeliveryMode: amqp.Persistent}
		return nil
	})
}

// read follows the deliveries until the channel ends.
func (p *parking) read() {
	tick := time.NewTicker(p.bounds.tick)
	defer tick.Stop()
	silent := false
	for {
		select {
		case d, ok := <-p.deliveries:
			if !ok {
				p.end()
				_ = p.ch.Close() // the queue may be gone, and the channel not
				return
			}
			silent = false
			p.arrive(&d)
		case now := <-tick.C:
			p.refresh(now)
			if silent && p.turn(false) == 0 {
				p.lookBehind()
			}
			silent = true
			p.checkProbe(now)
		}
	}
}

// arrive takes a record that came after the first reading.
func (p *parking) arrive(d *amqp.Delivery) {
	switch kind := text(d.Headers[parkHeader]); {
	case kind == parkMessage && number(d, positionHeader) > 0:
		if counts, known := p.take(d); counts && !known {
			p.tell([]driver.Parked{parkedOf(d, p.lane, number(d, positionHeader))})
		}
	case isCommand(kind):
		p.mu.Lock()
		p.open++
		p.commands = append(p.commands, *d)
		p.mu.Unlock()
		p.wake()
	case kind == parkProbe:
		p.probed(d)
	default:
		p.hold(d)
	}
}

func (p *parking) tell(told []driver.Parked) {
	if o, ok := p.source.observer.(driver.ParkingObserver); ok && len(told) > 0 {
		p.telling.Lock()
		defer p.telling.Unlock()
		o.Parked(told)
	}
}

func (p *parking) wake() {
	select {
	case p.work <- struct{}{}:
	default:
	}
}

// hold notes a record that stays unsettled though nothing is known about it. It may be the marker
// of a member that waits to be the owner and gets it when this channel is closed. Or it is a record
// that somebody else has put here.
func (p *parking) hold(d *amqp.Delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open++
	if p.ownMarker(d) {
		p.ackLocked(d.DeliveryTag)
		return
	}
	marker := text(d.Headers[parkHeader]) == parkMarker
	copying := returns(d) >= maxReturns && !marker && p.copyRecord(d, 0)
	p.strangers[d.DeliveryTag] = stranger{time.Now(), marker, copying}
}

// ownMarker says whether d is a marker that this owner has sent, beyond the one that it waited for.
func (p *parking) ownMarker(d *amqp.Delivery) bool {
	return text(d.Headers[parkHeader]) == parkMarker && len(d.MessageId) > len(p.id) && d.MessageId[:len(p.id)+1] == p.id+"/"
}

func (p *parking) ackLocked(tag uint64) {
	if !p.ended {
		_ = p.ch.Ack(tag, false) // an error says that the channel has ended, which its reader sees
		p.acks++
		p.open--
	}
}

// giveBackLocked has a record delivered again.
func (p *parking) giveBackLocked(tag uint64) {
	if !p.ended {
		_ = p.ch.Nack(tag, false, true) // as above
		p.open--
	}
}

// finish returns when the broker has delivered all settled records, and been told of them, if it
// does so in time.
func (p *parking) finish() {
	late := time.NewTimer(p.bounds.marker)
	defer late.Stop()
	for {
		p.mu.Lock()
		owed := p.owed
		p.mu.Unlock()
		if owed == 0 {
			return
		}
		select {
		case <-p.quiet:
		case <-p.closed:
			return
		case <-late.C:
			return
		}
	}
}

// commitNow returns when the queue has the acks of all settled messages. A message that was settled
// while its record was on the way is acked when the record comes; commitNow waits for the record as
// long as finish.
func (p *parking) commitNow(ctx context.Context) error {
	late := time.Now().Add(p.bounds.marker)
	for n := 0; ; n++ {
		p.mu.Lock()
		coming, unsure, ended := p.owed > 0, p.acks > p.applied, p.ended
		p.mu.Unlock()
		switch {
		case ended && (coming || unsure):
			return bus.ErrStale
		case coming && time.Now().Before(late):
			if !backoff.Sleep(ctx, commitInterval) {
				return context.Cause(ctx)
			}
		case unsure:
			if err := p.askWithin(ctx); !errors.Is(err, errNoAnswer) {
				return err
			}
			if !backoff.Sleep(ctx, backoff.Pause(n+1)) {
				return fmt.Errorf("%w: %w", context.Cause(ctx), errNoAnswer)
			}
		default:
			return nil
		}
	}
}

// askWithin is ask, which itself heeds no context.
func (p *parking) askWithin(ctx context.Context) error {
	answered := make(chan error, 1)
	go func() { answered <- p.ask() }()
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ask has the queue answer a question, which it does after the acks that were sent before.
func (p *parking) ask() error {
	p.rpc.Lock()
	defer p.rpc.Unlock()
	p.mu.Lock()
	sent, has, ended := p.acks, p.applied, p.ended
	p.mu.Unlock()
	switch {
	case ended:
		return bus.ErrStale
	case has == sent:
		return nil
	}
	q, err := p.ch.QueueDeclarePassive(p.queue, true, false, false, false, nil)
	switch {
	case err != nil:
		return err
	case q.Consumers == 0: // this one is
		return errNoAnswer
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied = max(p.applied, sent)
	return nil
}

// end makes all tokens stale. Nothing is sent afterwards.
func (p *parking) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.cancel()
	if !p.probing.sent.IsZero() {
		p.of.probed.Store(false) // the next ownership asks again
	}
	for _, e := range p.entries {
		if e.wanted != nil {
			e.wanted.missing()
			e.wanted = nil
		}
	}
}

// close gives back all that is held.
func (p *parking) close() {
	p.finish()
	p.end()
	p.rpc.Lock()
	if p.acks > 0 {
		settleDown(p.ch, p.queue)
	}
	p.rpc.Unlock()
	_ = p.ch.Close() // if it fails, the session has ended
	p.workers.Wait()
}
