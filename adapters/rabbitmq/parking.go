package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

const (
	// parkingPrefetch is how many records the broker delivers that are not settled: the most that AMQP can say. (No bound
	// is 2,000 to a quorum queue, seen on 3.10.8.)
	parkingPrefetch = 1<<16 - 1
	// maxParked is how many messages may be parked in a lane. There must be room for commands and later revisions.
	maxParked = 50_000
	// refreshInterval is how often the broker is made to deliver again what is parked: it ends a channel over a message
	// that is not settled for its consumer_timeout, 30 minutes by default.
	refreshInterval = 10 * time.Minute
	// markerInterval is how long an owner waits for its marker before it sends another.
	markerInterval = 5 * time.Second
	// loadPatience is how many markers it waits for.
	loadPatience = 6
	// blockedInterval is how long nothing must have come, while no marker can be sent.
	blockedInterval = time.Second
)

// parking is what the owner of a lane knows of the lane's parking queue. All that is parked there is delivered to it and
// held unsettled, on a channel of its own; of bodies nothing is kept. To fetch one, it is given back: it comes again
// at once.
//
// The lane's queue decides who the owner is. So whoever registers here owns the lane or has just lost it, and is active
// here as soon as the one before has closed its channel. All that an owner before has parked, and settled at its
// origin, is then in the queue: a marker that is sent from there on comes behind it. What comes behind the marker
// without being of this ownership was not settled at its origin, and comes from there as well.
//
// A goroutine reads the deliveries. mu guards the fields; nothing is sent on the channel after end.
type parking struct {
	source     *source
	lane       bus.Lane
	queue      string
	ch         *amqp.Channel
	deliveries <-chan amqp.Delivery
	closed     chan struct{} // closed when the channel has ended
	cause      error         // why, set before
	reader     sync.WaitGroup

	unsure bool // records of an owner before may come, which it has settled at their origin: see load

	mu       sync.Mutex
	ended    bool
	entries  map[int64]*parkedEntry
	settling map[int64]int // settled, while so many of their records are on the way
	settled  chan struct{} // has a token when settling has become empty
	last     int64         // the last position that was given out
	held     []uint64      // what is neither parked nor a command: see hold
	acks     uint64        // how many were sent
	applied  uint64        // up to which of these the queue has them

	rpc sync.Mutex // held for each request on the channel that is answered
}

// parkedEntry is one parked message.
type parkedEntry struct {
	tag      uint64 // of the record that is held unsettled; 0 while none is
	revision int64  // of that record
	written  int64  // the last revision that was given out
	wanted   *wanted
}

// openParking registers with the lane's parking queue, and reads it. It returns what the router is to be told.
func (c *consumer) openParking(ctx context.Context) ([]bus.Parked, error) {
	ch, err := c.session.conn.Channel()
	if err != nil {
		return nil, err
	}
	p := &parking{
		source: c.lane.source, lane: c.own.lane, queue: parkedName(c.lane.source.group, int(c.lane.id)), ch: ch, closed: make(chan struct{}),
		entries: map[int64]*parkedEntry{}, settling: map[int64]int{}, settled: make(chan struct{}, 1),
	}
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
	id := bus.NewID()
	// The queue stores the first marker while it registers this consumer.
	first := start(func() (struct{}, error) { return struct{}{}, p.mark(ctx, id+"/first") })
	if err := ch.Qos(parkingPrefetch, 0, false); err != nil {
		return nil, err
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
	told, err := p.load(ctx, id, first)
	if err != nil {
		return nil, fmt.Errorf("read what is parked: %w", err)
	}
	c.own.park(p)
	return told, nil
}

var (
	errNotLoaded = errors.New("the broker does not deliver it")
	errEnded     = errors.New("the broker ended the consumer of the parking queue")
)

// loading is what is known while the parking queue is read for the first time.
type loading struct {
	told     map[int64]bus.Parked
	carried  map[string]bool // commands that were carried out, but perhaps not removed
	commands []amqp.Delivery
	markers  []uint64 // of other members
}

// load reads up to a marker that was sent when this consumer was the active one. first sends the one that makes it so.
//
// While the broker blocks publishers, no marker can be sent, but who wants to make room by handling messages must be able
// to begin. Then it reads until nothing more comes. So it is if so many commands wait that the broker delivers no more
// before some are settled. What comes later is then taken to be parked: at worst it is handled out of its key's order, or twice.
func (p *parking) load(ctx context.Context, id string, first *attempt[struct{}]) ([]bus.Parked, error) {
	marker := id + "/first"
	active := false // the first delivery says so
	l := loading{told: map[int64]bus.Parked{}, carried: map[string]bool{}}
	late := time.NewTimer(0)
	defer late.Stop()
	quiet := false
	for sent := 0; ; {
		select {
		case d, ok := <-p.deliveries:
			if !ok {
				return nil, errEnded
			}
			if active && text(d.Headers[parkHeader]) == parkMarker && d.MessageId == marker {
				p.ack(d.DeliveryTag)
				return p.loaded(ctx, &l)
			}
			p.loadRecord(&d, &l)
			quiet = false
			if len(p.entries)+len(l.commands)+len(l.markers) == parkingPrefetch { // only this goroutine changes them now
				p.unsure = true
				return p.loaded(ctx, &l)
			}
			if !active {
				active, sent, marker = true, 0, id+"/last"
				late.Reset(0)
			}
		case <-late.C:
			if p.source.d.pub.link.blocked() {
				if quiet {
					p.unsure = true
					return p.loaded(ctx, &l)
				}
				quiet = true
				late.Reset(blockedInterval)
				continue
			}
			if sent++; sent > loadPatience {
				return nil, errNotLoaded
			}
			if sent == 1 && !active { // if it fails, another is sent
				_, _ = first.wait(ctx)
			} else {
				_ = p.mark(ctx, marker)
			}
			late.Reset(markerInterval)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// mark sends a marker.
func (p *parking) mark(ctx context.Context, marker string) error {
	ctx, cancel := context.WithTimeout(ctx, markerInterval)
	defer cancel()
	return p.source.d.pub.send(ctx, 1, func(_ int, x *parcel) error {
		x.key = p.queue
		x.Publishing = amqp.Publishing{Headers: amqp.Table{parkHeader: parkMarker}, MessageId: marker, DeliveryMode: amqp.Persistent}
		return nil
	})
}

func (p *parking) loadRecord(d *amqp.Delivery, l *loading) {
	switch kind := text(d.Headers[parkHeader]); kind {
	case parkMessage:
		position := positionOf(d)
		if p.take(d, true) != nil {
			l.told[position] = parkedOf(d, p.lane, position)
		}
		if command := text(d.Headers[commandHeader]); command != "" {
			l.carried[command] = true
		}
	case parkNew, parkReplace, parkWithdraw:
		l.commands = append(l.commands, *d)
	case parkMarker:
		l.markers = append(l.markers, d.DeliveryTag)
	default: // not ours: left where it is
		p.hold(d.DeliveryTag)
	}
}

// loaded carries out the commands that wait, and begins to read on.
func (p *parking) loaded(ctx context.Context, l *loading) ([]bus.Parked, error) {
	told := make([]bus.Parked, 0, len(l.told))
	for position, t := range l.told {
		told = append(told, t)
		p.last = max(p.last, position)
	}
	slices.SortFunc(told, func(a, b bus.Parked) int { return cmp.Compare(a.Position, b.Position) })
	p.ack(l.markers...)
	var due []amqp.Delivery
	for _, c := range l.commands {
		if l.carried[text(c.Headers[commandHeader])] {
			p.ack(c.DeliveryTag)
		} else {
			due = append(due, c)
		}
	}
	for chunk := range slices.Chunk(due, commandBatch) {
		changes, err := p.carryOut(ctx, chunk)
		if err != nil {
			return nil, err
		}
		told = append(told, changes...)
	}
	p.reader.Go(p.read)
	return told, nil
}

// take takes the record of a parked message, and returns it if it counts. An unknown one does not, unless adopt is set.
func (p *parking) take(d *amqp.Delivery, adopt bool) *parkedEntry {
	position := positionOf(d)
	revision, _ := d.Headers[revisionHeader].(int64)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[position]
	if e == nil && adopt && p.settling[position] == 0 {
		e = &parkedEntry{}
		p.entries[position] = e
	}
	if e == nil || revision < e.revision {
		p.ackLocked(d.DeliveryTag)
		if p.settling[position]--; p.settling[position] <= 0 {
			delete(p.settling, position)
			p.tellSettled()
		}
		return nil
	}
	if e.tag != 0 {
		p.ackLocked(e.tag)
	}
	e.tag, e.revision, e.written = d.DeliveryTag, revision, max(e.written, revision)
	if w := e.wanted; w != nil && e.revision == e.written {
		e.wanted = nil
		w.found(d)
	}
	return e
}

// read follows the deliveries until the channel ends.
func (p *parking) read() {
	refresh := time.NewTicker(refreshInterval)
	defer refresh.Stop()
	var commands []amqp.Delivery
	var linger <-chan time.Time
	for {
		select {
		case d, ok := <-p.deliveries:
			if !ok {
				p.end()
				_ = p.ch.Close() // the queue may be gone, and the channel not
				return
			}
			switch text(d.Headers[parkHeader]) {
			case parkMessage:
				p.takeNew(&d)
			case parkNew, parkReplace, parkWithdraw:
				if commands = append(commands, d); len(commands) < commandBatch {
					if linger == nil {
						linger = time.After(commandLinger)
					}
					continue
				}
				p.obey(commands)
				commands, linger = nil, nil
			default:
				p.hold(d.DeliveryTag)
			}
		case <-linger:
			p.obey(commands)
			commands, linger = nil, nil
		case <-refresh.C:
			p.obey(commands) // which would be given back with the rest
			commands, linger = nil, nil
			p.giveBack()
		}
	}
}

// takeNew takes the record of a parked message that came after the first reading.
func (p *parking) takeNew(d *amqp.Delivery) {
	if !p.unsure {
		p.take(d, false)
		return
	}
	position := positionOf(d)
	p.mu.Lock()
	known := p.entries[position] != nil
	p.mu.Unlock()
	if p.take(d, true) != nil && !known {
		p.tell([]bus.Parked{parkedOf(d, p.lane, position)})
	}
}

func (p *parking) tell(told []bus.Parked) {
	if o, ok := p.source.observer.(bus.ParkingObserver); ok && len(told) > 0 {
		o.Parked(told)
	}
}

// hold notes a record that stays unsettled though nothing is known of it: the marker of who waits to be the owner, who gets
// it when this channel is closed, or what somebody else has put here.
func (p *parking) hold(tag uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, tag)
}

// giveBack has all that is held delivered again.
func (p *parking) giveBack() {
	p.mu.Lock()
	defer p.mu.Unlock()
	highest := uint64(0)
	for _, tag := range p.held {
		highest = max(highest, tag)
	}
	p.held = p.held[:0]
	for _, e := range p.entries {
		highest = max(highest, e.tag)
		e.tag = 0
	}
	if highest > 0 && !p.ended {
		_ = p.ch.Nack(highest, true, true)
	}
}

// next gives out a position. It is a time, so that none is given out twice, whoever was the owner before.
func (p *parking) next() int64 {
	p.last = max(p.last+1, time.Now().UnixNano())
	return p.last
}

var errFull = fmt.Errorf("%d messages are parked in the lane: there is no room until some of them are handled", maxParked)

// place gives a message that is about to be parked its position and revision. It fails if the lane is not ours any more,
// or full.
func (p *parking) place(t bus.Token) (position, revision int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ended:
		return 0, 0, bus.ErrStale
	case !t.Parked && len(p.entries) >= maxParked:
		return 0, 0, errFull
	}
	position = t.Position
	if !t.Parked {
		position = p.next()
	}
	return position, p.revise(position), nil
}

// revise gives out the next revision of a parked message.
func (p *parking) revise(position int64) int64 {
	e := p.entries[position]
	if e == nil {
		e = &parkedEntry{}
		p.entries[position] = e
	}
	e.written++
	return e.written
}

// leave forgets what place gave, because it is not known to be stored. Should it be, it is removed when it comes, or
// takes the place of what was stored before; the next try comes behind it.
func (p *parking) leave(position int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := p.entries[position]; {
	case e == nil:
	case e.revision == 0:
		delete(p.entries, position)
	default:
		e.written = e.revision
	}
}

// settle removes a parked message. It returns false if the lane is not ours any more.
func (p *parking) settle(position int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	p.remove(position)
	return true
}

// remove is settle with the lock held.
func (p *parking) remove(position int64) {
	e := p.entries[position]
	if e == nil {
		return
	}
	delete(p.entries, position)
	if e.wanted != nil {
		e.wanted.missing()
	}
	coming := 0
	if e.tag != 0 {
		p.ackLocked(e.tag)
	} else if e.revision > 0 {
		coming++
	}
	if e.revision < e.written {
		coming++
	}
	if coming > 0 {
		p.settling[position] = coming
	}
}

func (p *parking) ack(tags ...uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, tag := range tags {
		p.ackLocked(tag)
	}
}

func (p *parking) ackLocked(tag uint64) {
	if !p.ended {
		_ = p.ch.Ack(tag, false) // an error says that the channel has ended, which its reader sees
		p.acks++
	}
}

// finish returns when the broker has delivered, and been told of, all that is settled, if it does in time.
func (p *parking) finish() {
	late := time.NewTimer(markerInterval)
	defer late.Stop()
	for {
		p.mu.Lock()
		n := len(p.settling)
		p.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-p.settled:
		case <-p.closed:
			return
		case <-late.C:
			return
		}
	}
}

func (p *parking) tellSettled() {
	if len(p.settling) == 0 {
		select {
		case p.settled <- struct{}{}:
		default:
		}
	}
}

// commitNow returns when the queue has the acks of all that was settled. What was settled while its record was on the way is acked when
// that comes; for that it waits as long as finish.
func (p *parking) commitNow(ctx context.Context) error {
	late := time.Now().Add(markerInterval)
	for {
		p.mu.Lock()
		coming, unsure, ended := len(p.settling) > 0, p.acks > p.applied, p.ended
		p.mu.Unlock()
		switch {
		case ended && (coming || unsure):
			return bus.ErrStale
		case coming && time.Now().Before(late):
			if !pause(ctx, commitInterval) {
				return context.Cause(ctx)
			}
		case unsure:
			return p.askWithin(ctx)
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
	if _, err := p.ch.QueueDeclarePassive(p.queue, true, false, false, false, nil); err != nil {
		return err
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
	p.reader.Wait()
}
