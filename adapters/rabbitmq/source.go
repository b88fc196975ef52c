package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/condition"
	"github.com/millrace-go/millrace/internal/readahead"
)

// source is one membership of a group.
//
// Goroutines: supervise follows the connection. Within a session, serve balances, and each lane has
// a goroutine that reads its deliveries into ready. Receive empties ready.
//
// Locks: mu guards ready; each ownership has its own lock. No lock is held while another is taken,
// or while the source waits for the broker or the observer.
type source struct {
	d        *busDriver
	sub      bus.Subscription
	group    string
	observer bus.LaneObserver
	prefetch int
	lanes    []*lane
	early    atomic.Bool     // early queues may be left
	lock     sharedLock      // the topic's, while lanes register with early queues, or delete them
	earliest atomic.Bool     // the group took over the messages that the topic kept
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	workers  sync.WaitGroup
	ended    chan struct{} // closed when all workers have ended
	balance  chan struct{} // has a token when the shares should be looked at now
	// conditions tells the observer what does not work.
	conditions *condition.Reporter

	mu      sync.Mutex
	ready   readahead.Queue[arrival]
	arrived chan struct{} // has a token when ready may have something
	// claims is how many lanes this member has, or is about to have. share is how many it may have,
	// 0 if that is not known, with this many members.
	claims, share, members int
}

// arrival is a message that waits for Receive.
type arrival struct {
	own      *ownership
	message  *bus.Message
	position int64
}

const (
	// readAhead is the assumed size of a message when Bytes is turned into a number: RabbitMQ
	// bounds its deliveries by number only.
	readAhead = 16 << 10
	// lanePrefetch is given to a lane even if the bounds' share of it is less. One lane alone must
	// be able to keep the handlers busy. It must not stand still because a few of its messages wait
	// for a retry.
	lanePrefetch = 256
)

// prefetchFor is how many messages the broker may have delivered to one lane that are not settled.
func prefetchFor(sub bus.Subscription, lanes int) int {
	bound := min(sub.InFlight, sub.Bytes/readAhead, 1<<15)
	return max(1, min(bound, max(lanePrefetch, 2*bound/lanes)))
}

// Subscribe implements driver.Driver.
func (d *busDriver) Subscribe(ctx context.Context, sub bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	if err := checkNames(sub.Topic, sub.Group); err != nil {
		return nil, fail("subscribe", sub.Topic, err)
	}
	if _, ok := sub.Start.Time(); ok {
		return nil, fail("subscribe", sub.Topic, fmt.Errorf("%w: RabbitMQ's queues have no messages of the past to start at: use Earliest or Latest", bus.ErrUnsupported))
	}
	if d.closing.Err() != nil {
		return nil, fail("subscribe", sub.Topic, bus.ErrClosed)
	}
	session, err := d.consume.Get(ctx)
	if err != nil {
		return nil, fail("subscribe", sub.Topic, err)
	}
	state, err := call(ctx, session, func(ctx context.Context, t *topology) (groupState, error) { return d.prepare(ctx, t, sub) })
	if err != nil {
		return nil, fail("subscribe", sub.Topic, err)
	}
	s := &source{
		d: d, sub: sub, group: groupName(sub.Topic, sub.Group), observer: o, prefetch: prefetchFor(sub, state.lanes),
		ended: make(chan struct{}), balance: make(chan struct{}, 1), arrived: make(chan struct{}, 1),
		conditions: condition.NewReporter(o),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.note(state)
	for i := range state.lanes {
		s.lanes = append(s.lanes, &lane{source: s, id: int32(i), revoke: make(chan struct{}, 1)})
	}
	if !d.register(s) {
		s.cancel()
		return nil, fail("subscribe", sub.Topic, bus.ErrClosed)
	}
	s.workers.Go(func() { s.supervise(session) })
	go func() {
		s.workers.Wait()
		close(s.ended)
	}()
	return s, nil
}

// supervise serves one session after the other.
func (s *source) supervise(session *amqplink.Session) {
	prepared := true
	for n := 0; s.ctx.Err() == nil; n++ {
		if !prepared {
			if !backoff.Sleep(s.ctx, backoff.Pause(n)) {
				return
			}
			var err error
			if session, err = s.reconnect(); err != nil {
				return
			}
			err = s.prepare(session)
			s.healed(connection)
			if err != nil {
				s.troubled(setup, err)
				continue
			}
		}
		s.healed(setup)
		since := time.Now()
		s.serve(session)
		prepared = false
		if s.ctx.Err() == nil {
			<-session.Done // all that ends serving
			s.troubled(connection, session.Failure())
		}
		if time.Since(since) > time.Second {
			n = 0
		}
	}
}

// connectionLook is how often a source without a connection looks why there is none.
const connectionLook = time.Second

// reconnect waits for the next session until the source ends, and tells the observer why there is none.
func (s *source) reconnect() (*amqplink.Session, error) {
	for {
		ctx, cancel := context.WithTimeout(s.ctx, connectionLook)
		session, err := s.d.consume.Get(ctx)
		cancel()
		if err == nil || s.ctx.Err() != nil || errors.Is(err, bus.ErrClosed) {
			return session, err
		}
		if why := s.d.consume.Failure(); why != nil {
			s.troubled(connection, why)
		}
	}
}

// prepare declares everything again.
func (s *source) prepare(session *amqplink.Session) error {
	state, err := call(s.ctx, session, func(ctx context.Context, t *topology) (groupState, error) { return s.d.prepare(ctx, t, s.sub) })
	if err == nil {
		err = s.checkLanes(state.lanes)
	}
	if err == nil {
		s.note(state)
	}
	return err
}

// checkLanes says whether the group still has the lanes that it had at the start.
func (s *source) checkLanes(lanes int) error {
	if lanes == len(s.lanes) {
		return nil
	}
	return fmt.Errorf("%w: the group was declared anew with %d lanes instead of %d: subscribe again", bus.ErrInvalid, lanes, len(s.lanes))
}

func (s *source) note(state groupState) {
	s.early.Store(state.early)
	s.earliest.Store(state.earliest)
}

// serve runs the lanes until the session or the source ends. They do not depend on the members'
// count.
func (s *source) serve(session *amqplink.Session) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	var lanes sync.WaitGroup
	defer lanes.Wait()
	for _, l := range s.lanes {
		lanes.Go(func() { l.run(ctx, session) })
	}
	m := &membership{source: s, session: session}
	defer m.leave()
	m.keep(ctx)
	cancel()
}

// deliver hands a message to Receive.
func (s *source) deliver(a arrival) {
	s.mu.Lock()
	s.ready.Add(a, a.message.Size())
	s.mu.Unlock()
	s.wake()
}

func (s *source) wake() {
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

// Receive implements bus.Source.
func (s *source) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if s.ctx.Err() != nil {
			return 0, fail("receive", s.sub.Topic, bus.ErrClosed)
		}
		if n := s.take(dst, maxBytes); n > 0 || len(dst) == 0 {
			return n, nil
		}
		select {
		case <-s.arrived:
		case <-ctx.Done():
		case <-s.ctx.Done():
		}
	}
}

// take moves deliveries from ready to dst, as many as fit. Deliveries of an ownership that is
// ending stay behind: the broker gives them to the lane's next owner.
func (s *source) take(dst []bus.Delivery, maxBytes int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	s.ready.Take(len(dst), maxBytes, func(a arrival) bool {
		if !a.own.open.Load() {
			return false
		}
		dst[n] = bus.Delivery{
			Message: a.message,
			Token:   bus.Token{Lane: a.own.lane.ID, Epoch: a.own.lane.Epoch, Position: a.position},
			Topic:   s.sub.Topic, Group: s.sub.Group,
		}
		n++
		return true
	})
	if s.ready.Len() > 0 {
		s.wake()
	}
	return n
}

// shut stops handing out messages of the ownership: no Receive that begins later returns any of
// them. Waiting messages are dropped at once: the caller of Receive may be pausing, while lanes
// come and go.
func (s *source) shut(o *ownership) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.open.Store(false)
	s.ready.Drop(func(a arrival) bool { return a.own == o })
}

// Settle implements bus.Source.
func (s *source) Settle(_ context.Context, tokens []bus.Token) error {
	if s.ctx.Err() != nil {
		return fail("settle", s.sub.Topic, fmt.Errorf("%w: %w", bus.ErrClosed, bus.ErrStale))
	}
	stale := 0
	var touched uint64 // lanes, as bits: there are at most 64
	for len(tokens) > 0 {
		// A run of tokens of one lane takes its lock once.
		run := 1
		for run < len(tokens) && tokens[run].Lane == tokens[0].Lane {
			run++
		}
		id := tokens[0].Lane
		if id < 0 || int(id) >= len(s.lanes) {
			stale += run
		} else {
			stale += s.lanes[id].done(tokens[:run])
			touched |= 1 << id
		}
		tokens = tokens[run:]
	}
	for id, l := range s.lanes {
		if touched&(1<<id) != 0 {
			l.commit()
		}
	}
	if stale > 0 {
		return fail("settle", s.sub.Topic, fmt.Errorf("%d tokens: %w", stale, bus.ErrStale))
	}
	return nil
}

// Commit implements driver.Committer.
func (s *source) Commit(ctx context.Context) error {
	for _, l := range s.lanes {
		if o := l.current.Load(); o != nil {
			err := o.commitNow(ctx)
			if p := o.parking(); err == nil && p != nil {
				err = p.commitNow(ctx)
			}
			if err != nil {
				return fail("settle", s.sub.Topic, err)
			}
		}
	}
	return nil
}

// Close implements bus.Source.
func (s *source) Close(ctx context.Context) error {
	s.cancel() // each lane sends its last acks and closes its channel, which gives back the rest
	defer s.d.unregister(s)
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
		return fail("close", s.sub.Topic, context.Cause(ctx))
	}
}

// unsettled is how many messages this member was delivered and has not settled, and in how many
// lanes it is registered as a consumer that may have some.
func (s *source) unsettled() (messages, lanes int) {
	for _, l := range s.lanes {
		if o := l.current.Load(); o != nil {
			messages += o.unsettled()
			if l.owned.Load() {
				lanes++
			}
		}
	}
	return messages, lanes
}
