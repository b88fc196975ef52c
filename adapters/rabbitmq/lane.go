package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// lane is this member's part in one lane of the group. The member is registered as a consumer of
// the lane's queue, and owns the lane while its consumer is the active one.
//
// RabbitMQ activates consumers in the order of their registration, and does not tell them: the
// first delivery does. So each member that registers wakes the active one with a marker.
//
// A lane is given up by closing the channel. This returns unsettled messages to their old places
// and activates the next consumer, atomically. (basic.cancel is not atomic: a quorum queue gives
// later messages to the successor while earlier ones are still held here.)
type lane struct {
	source  *source
	id      int32
	revoke  chan struct{} // has a token when the member must give up the lane
	current atomic.Pointer[ownership]
	owned   atomic.Bool                 // the present ownership is assigned, and not being given up
	waking  *amqplink.Attempt[struct{}] // the last marker of its consumers; used by run
	passed  int                         // how often it was let go in a row; guarded by the source's mu
	probed  atomic.Bool                 // the delivery limit of its parking queue is known, or being asked for
	limited atomic.Pointer[error]       // why that limit is too low, if it is
}

var (
	errCancelled = errors.New("the broker ended the consumer")
	errGivenUp   = errors.New("the lane was handed to another member")
	errStuck     = errors.New("the broker stopped delivering")
	errPassed    = errors.New("the lane was handed over to a member with fewer lanes")
	errSilent    = errors.New("the lane's queue does not answer: a majority of its nodes may be missing")
)

// run registers again and again until ctx ends.
func (l *lane) run(ctx context.Context, session *amqplink.Session) {
	passed := false
	for n := 0; ctx.Err() == nil; n++ {
		since := time.Now()
		err := l.register(ctx, session, passed)
		passed = errors.Is(err, errPassed)
		switch {
		case errors.Is(err, errGivenUp), errors.Is(err, errPassed):
			n = -1 // get in line again at once
			continue
		case ctx.Err() != nil || session.Conn.IsClosed():
			return
		case amqplink.HasCode(err, amqp.NotFound), errors.Is(err, errCancelled), errors.Is(err, errEnded):
			if failed := l.restore(session); failed != nil {
				err = failed // the reason of the reason
			}
		}
		l.source.troubled(spot(l.id), err)
		if time.Since(since) > answerPatience+time.Second {
			n = 0
		}
		if !backoff.Sleep(ctx, backoff.Pause(n+1)) {
			return
		}
	}
}

// register waits in line for the lane, and owns it until it is given up or lost, or ctx ends. It
// always returns an error that says which of these happened. passed says that the lane was let go
// just before.
func (l *lane) register(ctx context.Context, session *amqplink.Session, passed bool) error {
	c, err := newConsumer(l, session)
	if err != nil {
		return err
	}
	c.passed = passed
	select {
	case <-l.revoke: // meant for an earlier ownership
	default:
	}
	l.current.Store(c.own)
	early, err := l.begin(ctx, c)
	if err == nil {
		err = c.follow(ctx)
	}
	l.owned.Store(false)
	l.source.shut(c.own)
	c.own.end()
	if c.parking != nil {
		c.parking.close() // first, so that the next owner finds it closed
	}
	if c.own.hasAcked() {
		c.own.rpc.Lock()
		settleDown(c.ch, l.name())
		if early && !c.dropped {
			settleDown(c.ch, l.earlyName())
		}
		c.own.rpc.Unlock()
	}
	l.current.Store(nil)
	if c.claimed {
		l.source.unclaim()
	}
	_ = c.ch.Close() // if it fails, the session has ended, and all is given back as well
	if l.source.ctx.Err() == nil && c.assigned && !errors.Is(err, errGivenUp) {
		if session.Conn.IsClosed() {
			<-session.Done
			err = session.Failure()
		}
		l.source.observer.Lost([]bus.Lane{c.own.lane}, fmt.Errorf("lane %d of group %q on %q: %w", l.id, l.source.sub.Group, l.source.sub.Topic, err))
	}
	return err
}

func (l *lane) name() string      { return laneName(l.source.group, int(l.id)) }
func (l *lane) earlyName() string { return earlyName(l.source.group, int(l.id)) }

// begin registers with the lane's early queue, as long as there is one, or with the lane's queue.
//
// It holds the topic's lock, so that the early queue is not deleted meanwhile. If a consumer
// registered with a quorum queue that is just being deleted, the server would end the whole
// connection. It answers with an internal error then (seen on 3.10.8).
func (l *lane) begin(ctx context.Context, c *consumer) (early bool, err error) {
	if !l.source.early.Load() {
		return false, c.begin(ctx, false)
	}
	unlock, err := c.lockEarly(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	t := &topology{session: c.session}
	defer t.close()
	q, early, err := t.queue(l.earlyName())
	switch {
	case err != nil:
		return false, err
	case early && q.Messages+q.Consumers == 0: // it has its end marker at least, so its leader does not answer: see confirmed
		return false, errSilent
	}
	return early, c.begin(ctx, early)
}

// restore declares the lane's queue again after it was deleted, if the group still has the lane.
//
// It declares this queue only. A queue may be declared before its consumers are told that the old
// queue is gone. The server then moves them to the new queue, and they may never get anything (seen
// on 3.10.8).
func (l *lane) restore(session *amqplink.Session) error {
	s := l.source
	_, err := call(s.ctx, session, func(_ context.Context, t *topology) (struct{}, error) {
		lanes, err := s.d.existingLanes(t, s.group)
		if err == nil {
			err = s.checkLanes(lanes)
		}
		if err == nil {
			err = t.declareLane(s.d.cfg, s.group, lanes, int(l.id))
		}
		return struct{}{}, err
	})
	if amqplink.HasCode(err, amqp.NotFound) || errors.Is(err, bus.ErrNotFound) { // more is gone
		return s.prepare(session)
	}
	return err
}

// done notes settled tokens, and returns how many are stale.
func (l *lane) done(tokens []bus.Token) (stale int) {
	o := l.current.Load()
	if o == nil {
		return len(tokens)
	}
	return o.done(tokens)
}

func (l *lane) commit() {
	if o := l.current.Load(); o != nil {
		o.commit()
	}
}

// wake lets the active consumer of the lane's queue know that it is active. It is a hint: nothing
// is lost with it.
func (l *lane) wake() *amqplink.Attempt[struct{}] {
	s := l.source
	marker := amqplink.Start(func() (struct{}, error) {
		err := s.d.pub.wake(s.ctx, l.name())
		if err == nil {
			s.healed(ownTraffic)
		} else if !amqplink.Retryable(err) && s.ctx.Err() == nil {
			s.troubled(ownTraffic, err)
		}
		return struct{}{}, err
	})
	s.workers.Go(func() { <-marker.Done() })
	return marker
}

// unsettled is how many messages of the lane this member was delivered and has not settled.
func (l *lane) unsettled() int {
	if o := l.current.Load(); o != nil {
		return o.unsettled()
	}
	return 0
}

// giveUp asks for the lane to be handed to another member.
func (l *lane) giveUp() {
	select {
	case l.revoke <- struct{}{}:
	default:
	}
}
