package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/epoch"
	"github.com/millrace-go/millrace/internal/window"
)

// commitInterval is how much later than Settle an ack is sent at the latest.
const commitInterval = 5 * time.Millisecond

// ownership is one ownership of a lane: one channel, from its opening to its closing. Its positions
// are the channel's delivery tags.
//
// All acks are sent under mu and none after end. An ack that meets the closing of its channel would
// end the whole connection (504).
type ownership struct {
	lane bus.Lane
	ch   *amqp.Channel
	open atomic.Bool // messages may be handed out; written under the source's mu

	mu      sync.Mutex
	ended   bool
	win     *window.Window
	pending []int64 // settled and not acked yet
	acked   bool    // something was
	most    int     // how many the broker delivers that are not acked
	enough  int     // pending that are acked at once
	timer   *time.Timer
	armed   bool
	last    int64         // the end marker's position, 0 if none is due
	early   chan struct{} // closed when all before the end marker is settled
	arrived int64         // the last position
	checked int64         // the last position at the last check
	probed  bool          // the broker has had a marker for this lane since then
	proper  bool          // the lane's queue is consumed, not only its early one
	stuck   chan struct{} // closed when that marker did not arrive
	isStuck bool
	flushed uint64                  // how often acks were sent
	applied uint64                  // up to which of these the queue has them
	rpc     sync.Mutex              // held for each request on the channel that is answered
	queues  []string                // that the channel consumes from; guarded by rpc
	parked  atomic.Pointer[parking] // nil until it has been read, and if nobody asks for it
}

func newOwnership(id int32, ch *amqp.Channel, prefetch int) *ownership {
	o := &ownership{
		lane: bus.Lane{ID: id, Epoch: epoch.Next()}, ch: ch,
		win: window.New(1), most: prefetch, enough: max(1, min(prefetch/4, 64)), early: make(chan struct{}),
		stuck: make(chan struct{}),
	}
	o.open.Store(true)
	o.timer = time.AfterFunc(time.Hour, o.expire)
	o.timer.Stop()
	return o
}

// add notes a delivery.
func (o *ownership) add(tag int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.win.Add(tag)
	o.arrived = tag
}

// park stores the parking of the lane.
func (o *ownership) park(p *parking) { o.parked.Store(p) }

func (o *ownership) parking() *parking { return o.parked.Load() }

// begin notes that the lane's queue is consumed.
func (o *ownership) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.proper = true
}

// done notes settled tokens, and returns how many of the tokens are not of this ownership.
func (o *ownership) done(tokens []bus.Token) (stale int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range tokens {
		switch p := o.parking(); {
		case o.ended || tokens[i].Epoch != o.lane.Epoch:
			stale++
		case tokens[i].Parked:
			if p == nil || !p.settle(tokens[i].Position) {
				stale++
			}
		default:
			o.doneLocked(tokens[i].Position)
		}
	}
	return stale
}

func (o *ownership) doneLocked(tag int64) {
	if o.win.Done(tag) { // false: it was settled before
		o.pending = append(o.pending, tag)
	}
}

// commit acks at once if there are enough messages, and else a little later, so that one ack can
// stand for many.
func (o *ownership) commit() {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.ended || len(o.pending) == 0:
	case len(o.pending) >= o.enough:
		o.flush()
	case !o.armed:
		o.armed = true
		o.timer.Reset(commitInterval)
	}
}

func (o *ownership) expire() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.armed = false
	if !o.ended {
		o.flush()
	}
}

// flush sends the pending acks. One ack, for the last message before the first unsettled one,
// covers all before it. Its tag was never acked alone: the broker no longer knows a tag acked
// alone, and closes the channel over it.
func (o *ownership) flush() {
	before := o.win.Position()
	upTo := int64(0)
	for _, tag := range o.pending {
		if tag < before {
			upTo = max(upTo, tag)
		}
	}
	// An error is not lost: the channel has ended then, and the reader of its deliveries sees that.
	if upTo > 0 {
		_ = o.ch.Ack(uint64(upTo), true)
	}
	for _, tag := range o.pending {
		if tag > before {
			_ = o.ch.Ack(uint64(tag), false)
		}
	}
	if len(o.pending) > 0 {
		o.acked = true
		o.flushed++
	}
	o.pending = o.pending[:0]
	if o.last != 0 && before == o.last {
		o.last = 0
		close(o.early)
	}
}

// expectEnd notes the end marker of the lane's early queue, which has been added.
func (o *ownership) expectEnd(tag int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = tag
	if !o.ended {
		o.flush() // perhaps all before it is settled already
	}
}

// finish settles a marker.
func (o *ownership) finish(tag int64) {
	o.mu.Lock()
	o.doneLocked(tag)
	o.mu.Unlock()
	o.commit()
}

// settleDown waits until the broker has worked off the acks of a channel. A channel of the broker
// passes at most 32 acks on to a quorum queue before it hears from the queue. It forgets the rest
// when it is closed (seen on 3.10.8).
//
// Registering one more consumer, which waits in line and goes with the channel, makes the channel
// pass on the acks that it held back. The queue itself answers the registration, after it has
// applied all earlier acks. A second registration answers for the acks that the first one released.
//
// A queue without a leader says that it has no consumer. Then there is nobody to wait for, and
// registering would end the whole connection. Messages with acks that cannot be confirmed here are
// delivered again.
func settleDown(ch *amqp.Channel, queue string) {
	if q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil); err != nil || q.Consumers == 0 {
		return
	}
	for range 2 {
		// The library makes up the tag: a tag that the channel already has would end the whole
		// connection.
		if _, err := ch.Consume(queue, "", false, false, false, false, nil); err != nil {
			return
		}
	}
}

func (o *ownership) hasAcked() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.acked
}

// end sends the last acks. Nothing is sent afterwards, and all tokens are stale.
func (o *ownership) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	o.flush()
	o.ended = true
	o.timer.Stop()
}

// register notes that the channel consumes from a queue, or does no more. The caller has rpc.
func (o *ownership) register(queue string, consumes bool) {
	if consumes {
		o.queues = append(o.queues, queue)
	} else {
		o.queues = slices.DeleteFunc(o.queues, func(q string) bool { return q == queue })
	}
}

// commitNow returns when the queues have all acks of the settled messages. Several calls share one
// question to the queues, which they answer after the acks.
func (o *ownership) commitNow(ctx context.Context) error {
	o.mu.Lock()
	if !o.ended {
		o.flush()
	}
	want := o.flushed
	o.mu.Unlock()
	for n := 0; ; n++ {
		o.mu.Lock()
		has := o.applied
		o.mu.Unlock()
		if has >= want {
			return nil
		}
		answered := make(chan error, 1)
		go func() { answered <- o.ask(want) }() // the request heeds no context
		select {
		case err := <-answered:
			if !errors.Is(err, errNoAnswer) {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !backoff.Sleep(ctx, backoff.Pause(n+1)) {
			return fmt.Errorf("%w: %w", context.Cause(ctx), errNoAnswer)
		}
	}
}

var errNoAnswer = errors.New("the queue's leader does not answer")

func (o *ownership) ask(want uint64) error {
	o.rpc.Lock()
	defer o.rpc.Unlock()
	o.mu.Lock()
	sent, has, ended := o.flushed, o.applied, o.ended
	o.mu.Unlock()
	switch {
	case has >= want:
		return nil
	case ended:
		return bus.ErrStale
	}
	for _, queue := range o.queues {
		q, err := o.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		switch {
		case err != nil:
			return err
		case q.Consumers == 0: // this one is
			return errNoAnswer
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.applied = max(o.applied, sent)
	return nil
}

// check is called now and then for a lane that is owned. It returns true if the lane should be
// probed: nothing has arrived since the last check, though the broker may deliver more. If the lane
// was probed already, deliveries have stopped: the broker takes a consumer to be active that gets
// nothing. It may be another member's consumer, if the broker's nodes could not reach each other.
func (o *ownership) check() (probe bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.isStuck:
		return false
	case !o.proper || o.arrived != o.checked || o.win.Open() >= o.most:
		o.checked, o.probed = o.arrived, false
		return false
	case !o.probed:
		return true
	}
	o.isStuck = true
	close(o.stuck)
	return false
}

// probe notes that the broker has a marker for this lane.
func (o *ownership) probe() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.probed = o.arrived == o.checked
}

func (o *ownership) unsettled() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.win.Open()
}
