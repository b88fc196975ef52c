package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus/driver"
)

const (
	// loadPatience is how many markers an owner sends without an answer.
	loadPatience = 6
	// blockedInterval is how long nothing must have come, while no marker can be sent.
	blockedInterval = time.Second
)

var errNotLoaded = errors.New("the broker does not deliver the parked messages")

// loading holds the state of the first read of the parking queue.
type loading struct {
	told    map[int64]driver.Parked
	markers []uint64 // of other members
	rotated int      // records that were given back to make room
	again   int      // records that came again since
	failed  bool     // copies could not be written
}

// openParking registers with the lane's parking queue, and reads it. It returns the parked messages
// to tell the router. After that, start goes on.
func (c *consumer) openParking(ctx context.Context) ([]driver.Parked, error) {
	ch, err := c.session.Conn.Channel()
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
	first := amqplink.Start(func() (struct{}, error) { return struct{}{}, p.mark(ctx, parkMarker, p.id+"/first") })
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
		return nil, fmt.Errorf("read the parked messages: %w", err)
	}
	c.own.park(p)
	return told, nil
}

// mark sends a marker or a probe.
func (p *parking) mark(ctx context.Context, kind, name string) error {
	ctx, cancel := context.WithTimeout(ctx, p.bounds.marker)
	defer cancel()
	return p.source.d.pub.send(ctx, 1, func(_ int, x *amqplink.Parcel) error {
		x.Key = p.queue
		x.Publishing = amqp.Publishing{Headers: amqp.Table{parkHeader: kind}, MessageId: name, DeliveryMode: amqp.Persistent}
		return nil
	})
}

// load reads up to a marker that was sent when this consumer was the active one. first sends the
// marker that makes it active. Patience begins anew with every record.
//
// While the broker blocks publishers, no marker can be sent, but a group that makes room by
// handling messages must be able to begin. Then load reads until nothing more comes, or as much as
// the broker delivers. Later records are adopted: at worst their messages are handled out of their
// key's order, or twice.
func (p *parking) load(ctx context.Context, first *amqplink.Attempt[struct{}]) ([]driver.Parked, error) {
	marker := p.id + "/first"
	active := false // the first delivery says so
	l := loading{told: map[int64]driver.Parked{}}
	late := time.NewTimer(0)
	defer late.Stop()
	quiet := false
	var unsent error // why the last marker could not be sent
	for sent := 0; ; {
		select {
		case d, ok := <-p.deliveries:
			if !ok {
				return nil, errEnded
			}
			last := active && text(d.Headers[parkHeader]) == parkMarker && d.MessageId == marker
			p.loadRecord(&d, &l)
			if last || !p.makeRoom(ctx, &l) {
				return p.finishLoad(ctx, &l), nil
			}
			p.copyNow(ctx, &l, false)
			quiet = false
			if active {
				if sent > 0 { // else the marker is still to be sent
					sent = 1
					late.Reset(p.bounds.marker)
				}
			} else {
				active, sent, marker = true, 0, p.id+"/last"
				late.Reset(0)
			}
		case <-late.C:
			if p.source.d.pub.link.Blocked() {
				if quiet {
					return p.finishLoad(ctx, &l), nil
				}
				quiet = true
				late.Reset(blockedInterval)
				continue
			}
			if sent++; sent > loadPatience && unsent != nil {
				return nil, fmt.Errorf("%w: no marker can be sent: %w", errNotLoaded, unsent)
			} else if sent > loadPatience {
				return nil, errNotLoaded
			}
			if sent == 1 && !active { // if it fails, another is sent
				_, unsent = first.Wait(ctx)
			} else {
				unsent = p.mark(ctx, parkMarker, marker)
			}
			late.Reset(p.bounds.marker)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (p *parking) loadRecord(d *amqp.Delivery, l *loading) {
	position := number(d, positionHeader)
	switch kind := text(d.Headers[parkHeader]); {
	case kind == parkMessage && position > 0:
		counts, known := p.take(d)
		if counts {
			l.told[position] = parkedOf(d, p.lane, position)
		}
		if known && d.Redelivered {
			l.again++
		} else {
			l.rotated, l.again = 0, 0
		}
	case isCommand(kind):
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open++
		p.commands = append(p.commands, *d)
	case kind == parkMarker, kind == parkProbe: // a probe of an owner before
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open++
		if p.ownMarker(d) || kind == parkProbe {
			p.ackLocked(d.DeliveryTag)
		} else {
			l.markers = append(l.markers, d.DeliveryTag)
		}
	default:
		p.hold(d)
	}
}

// makeRoom gives some records back when the broker will not deliver more before. They come again
// behind the others. In a queue with a delivery limit they come again at once, and are copied.
// makeRoom returns false if neither helps.
func (p *parking) makeRoom(ctx context.Context, l *loading) bool {
	if !p.full() {
		return true
	}
	if l.rotated > 0 && l.again >= l.rotated {
		p.copyNow(ctx, l, true)
		l.rotated, l.again = 0, 0
		return !p.full()
	}
	n := p.rotate(true)
	l.rotated += n
	return n > 0
}

func (p *parking) full() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open >= p.bounds.window
}

// copyNow writes copies of the records that were given back too often: in portions, and with last
// the rest. Nothing is handled before. A copy that cannot be written now is written when its record
// is next given back.
func (p *parking) copyNow(ctx context.Context, l *loading, last bool) {
	p.mu.Lock()
	if n := len(p.copies); n == 0 || !last && n < maxCopies/2 && p.copyBytes < maxCopyBytes/2 {
		p.mu.Unlock()
		return
	}
	copies := p.takeCopies()
	p.mu.Unlock()
	if l.failed = l.failed || p.source.d.pub.link.Blocked(); l.failed {
		p.dropCopies(copies)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*p.bounds.marker)
	defer cancel()
	l.failed = !p.writeCopies(ctx, copies)
}

// finishLoad returns the parked messages to tell the router. After that, write carries out the
// waiting commands.
func (p *parking) finishLoad(ctx context.Context, l *loading) []driver.Parked {
	p.copyNow(ctx, l, true)
	told := make([]driver.Parked, 0, len(l.told))
	for _, t := range l.told {
		told = append(told, t)
	}
	slices.SortFunc(told, func(a, b driver.Parked) int { return cmp.Compare(a.Position, b.Position) })
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, tag := range l.markers {
		p.ackLocked(tag)
	}
	if len(told) > 0 {
		p.clock.Seen(told[len(told)-1].Position)
	}
	p.loaded = time.Now()
	p.wake()
	return told
}
