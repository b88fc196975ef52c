package sqllog

import (
	"context"
	"fmt"
	"sync"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/condition"
	"github.com/millrace-go/millrace/internal/readahead"
	"github.com/millrace-go/millrace/internal/window"
)

// Source implements bus.Source: one member of a group on a topic. Its reader (reader.go) reads ahead of Receive, its
// committer (committer.go) stores what Settle marks, its keeper (keeper.go) holds its lanes.
type Source struct {
	driver *Driver
	topic  topic
	group  int64
	// groupName is the group's name.
	groupName string
	observer  bus.LaneObserver
	// conditions tells the observer what does not work.
	conditions *condition.Reporter
	// transactional: everything is settled in transactions, as they come, and nothing is left to the committer.
	transactional bool

	// ahead bounds the messages read and not received yet.
	ahead, aheadBytes int

	closing chan struct{} // closed when Close begins
	io      context.Context
	stopIO  context.CancelFunc
	work    sync.WaitGroup

	// Signals, of capacity one.
	wake    chan struct{} // to the reader: there may be messages
	room    chan struct{} // to the reader: there is room, or lanes have changed
	moved   chan struct{} // to the keeper: members or lanes have changed
	dirty   chan struct{} // to the committer: something was settled
	arrived chan struct{} // to Receive: there are messages, or there is an error

	commitMu   sync.Mutex // held while progress is written, so that older progress never follows newer
	observerMu sync.Mutex // held while the observer is told of lanes that come or are lost

	mu       sync.Mutex
	lanes    []*lane // by shard; nil: not ours
	ready    readahead.Queue[arrival]
	alarmed  error // is told before any message
	member   member
	epochs   []uint64           // the last one of each lane that was this source's; used by the keeper alone
	revoking []*lane            // lanes that are being surrendered, until they have no owner
	abandon  context.CancelFunc // ends the wait for their handlers
	orphans  orphans            // used by the keeper alone, and by Close after it
	closed   chan struct{}      // closed when Close has ended; nil: not begun
	err      error
}

// lane is one ownership. It is guarded by Source.mu.
type lane struct {
	id     bus.Lane
	window *window.Window
	read   int64  // the first position that has not been read
	stored int64  // the position that was committed
	place  string // where the last settlement has left the lane's row; see Progress
	top    int64  // the last position that was read, and the id of its message
	topID  string
	ahead  int    // how many messages have been read and not received
	saved  uint64 // the version of the window that was committed
	// unparked are parked messages that were settled, and must be deleted. heard is the number of
	// the last change to the parked messages that the router knows of.
	unparked []int64
	heard    int64
	// doubtful are the positions, by that at the origin, at which messages may have been parked by a call without an answer.
	doubtful map[int64]int64
	// lock is held by the transaction that settles in the lane, if the source is transactional.
	// doubt: it is not known yet whether the last transaction was committed.
	lock  chan struct{}
	doubt bool
	// announced: the observer knows the lane and the messages parked in it, so that there may be
	// deliveries.
	announced bool
	// revoking: no delivery any more, but settling goes on. gone: another member may own the lane.
	revoking, gone bool
}

// basis returns the state that the database must have for writes that build on it. Called with the
// lock held.
func (l *lane) basis(t topic) Basis {
	b := Basis{Topic: t.id, Stored: l.stored, Changes: l.heard}
	if l.top >= l.stored { // nobody deletes it before that is committed
		b.Top, b.ID = l.top, l.topID
	}
	return b
}

// witness returns the newest message that was read and that nobody deletes before this member has committed. The lock
// is held.
func (s *Source) witness() (w Witness) {
	for _, l := range s.lanes {
		if l != nil && l.top >= l.stored && l.top > w.Seq && l.topID != "" {
			w = Witness{Shard: l.id.ID, Seq: l.top, ID: l.topID}
		}
	}
	return w
}

// pass notes that nothing is left below the last read position, so that the next owner need not
// look there again. Without it the owner does, where the lane had no messages while the topic had
// many. Called with the lock held, when the lane is about to be given up.
func (l *lane) pass() {
	if l.ahead == 0 {
		l.window.Advance(l.read)
	}
}

// arrival is a message that has been read and not received yet.
type arrival struct {
	lane *lane
	msg  *bus.Message
	pos  int64
}

// maxAhead bounds the messages that a reader reads at once: more makes a read no cheaper.
const maxAhead = 2048

// maxAheadBytes does the same in bytes.
const maxAheadBytes = 8 << 20

// Subscribe implements driver.Driver.
func (d *Driver) Subscribe(ctx context.Context, sub bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	if !d.enter() {
		return nil, d.fail("subscribe", sub.Topic, bus.ErrClosed)
	}
	defer d.calls.Done()
	if at, ok := sub.Start.Time(); ok && at.IsZero() {
		return nil, d.fail("subscribe", sub.Topic, fmt.Errorf("%w: start at the zero time", bus.ErrInvalid))
	}
	t, err := d.topics.get(ctx, sub.Topic)
	if err != nil {
		return nil, d.fail("subscribe", sub.Topic, err)
	}
	var group int64
	err = d.persist(ctx, func(ctx context.Context) (err error) {
		group, err = d.group(ctx, t, sub.Group, sub.Start)
		return err
	})
	if err != nil {
		return nil, d.fail("subscribe", sub.Topic, err)
	}
	s := &Source{
		driver: d, topic: t, group: group, groupName: sub.Group, observer: o, conditions: condition.NewReporter(o), transactional: sub.Transactional,
		ahead: min(max(sub.InFlight, 1), maxAhead), aheadBytes: min(max(sub.Bytes, 1), maxAheadBytes),
		closing: make(chan struct{}), lanes: make([]*lane, t.shards), epochs: make([]uint64, t.shards), member: newMember(),
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), moved: make(chan struct{}, 1),
		dirty: make(chan struct{}, 1), arrived: make(chan struct{}, 1),
	}
	s.io, s.stopIO = context.WithCancel(context.Background())
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isClosed {
		s.stopIO()
		return nil, d.fail("subscribe", sub.Topic, bus.ErrClosed)
	}
	d.sources[s] = struct{}{}
	d.listen()
	d.hub.add(s)
	s.work.Go(s.read)
	s.work.Go(s.commitAlways)
	s.work.Go(s.keep)
	return s, nil
}

// Receive implements bus.Source.
func (s *Source) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := s.take(dst, maxBytes)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-ctx.Done():
		case <-s.arrived:
		case <-s.closing:
		}
	}
}

// take fills dst with messages that have been read.
func (s *Source) take(dst []bus.Delivery, maxBytes int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return 0, s.driver.fail("receive", s.topic.name, bus.ErrClosed)
	}
	if err := s.alarmed; err != nil {
		s.alarmed = nil
		return 0, &bus.Error{Op: "receive", Broker: s.driver.dialect.Name, Topic: s.topic.name, Err: err, Definite: true}
	}
	full := s.isFull()
	n := 0
	s.ready.Take(len(dst), maxBytes, func(a arrival) bool {
		a.lane.ahead--
		if !a.lane.window.Add(a.pos) {
			return false // finished under an earlier ownership
		}
		dst[n] = bus.Delivery{
			Message: a.msg,
			Token:   bus.Token{Lane: a.lane.id.ID, Epoch: a.lane.id.Epoch, Position: a.pos},
			Topic:   s.topic.name,
			Attempt: 1,
		}
		n++
		return true
	})
	if full && !s.isFull() {
		signal(s.room)
	}
	return n, nil
}

// isFull says whether enough has been read: half of the bounds, so that reads stay large.
func (s *Source) isFull() bool {
	return s.ready.Len() > s.ahead/2 || s.ready.Bytes() > s.aheadBytes/2
}

// Settle implements bus.Source.
func (s *Source) Settle(ctx context.Context, tokens []bus.Token) error {
	if s.transactional {
		return s.settleTransactional(ctx, tokens)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return s.driver.fail("settle", s.topic.name, bus.ErrClosed)
	}
	stale, changed := 0, false
	for _, t := range tokens {
		l := s.owned(t.Lane, t.Epoch)
		if l == nil {
			stale++
			continue
		}
		if t.Parked {
			l.unparked = append(l.unparked, t.Position)
			changed = true
			continue
		}
		changed = l.window.Done(t.Position) || changed
	}
	if changed {
		signal(s.dirty)
	}
	if stale > 0 {
		return s.driver.fail("settle", s.topic.name, fmt.Errorf("%d of %d: %w", stale, len(tokens), bus.ErrStale))
	}
	return nil
}

// owned returns the lane of this very ownership, if it is still held. Called with the lock held.
func (s *Source) owned(id int32, epoch uint64) *lane {
	if id < 0 || int(id) >= len(s.lanes) || s.lanes[id] == nil || s.lanes[id].id.Epoch != epoch {
		return nil
	}
	return s.lanes[id]
}

// purge forgets the messages read of lanes that are being revoked or gone. Called with the lock held.
func (s *Source) purge() {
	s.ready.Drop(func(a arrival) bool { return a.lane.revoking || a.lane.gone })
	signal(s.room)
}

// Close implements bus.Source.
func (s *Source) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.closed != nil {
		s.mu.Unlock()
		select {
		case <-s.closed:
			return s.err
		case <-ctx.Done():
			return s.driver.fail("close", s.topic.name, ctx.Err())
		}
	}
	s.closed = make(chan struct{})
	close(s.closing)
	if s.abandon != nil {
		s.abandon()
	}
	s.mu.Unlock()

	defer close(s.closed)
	defer s.stopIO()
	defer context.AfterFunc(ctx, s.stopIO)() // calls under way then end soon
	s.work.Wait()
	s.driver.hub.remove(s)
	if err := s.leave(ctx); err != nil {
		s.err = s.driver.fail("close", s.topic.name, fmt.Errorf("the messages settled last may be delivered again: %w", err))
	}
	s.driver.hub.moved(s.group)
	s.driver.announcer.moved(s.group)
	s.driver.mu.Lock()
	delete(s.driver.sources, s)
	s.driver.mu.Unlock()
	return s.err
}

// leave makes all settlements durable and gives everything up, trying again until ctx ends.
func (s *Source) leave(ctx context.Context) error {
	s.mu.Lock()
	for _, l := range s.lanes {
		if l != nil {
			l.pass()
		}
	}
	s.mu.Unlock()
	for b := (backoff.Backoff{}); ; {
		bounded, cancel := context.WithTimeout(ctx, callTimeout)
		err := s.rescue(bounded)
		if err == nil {
			err = s.commit(bounded)
		}
		if err == nil {
			err = s.depart(bounded)
		}
		cancel()
		if err == nil || !s.driver.store.Fault(err).Retryable || !sleep(b.Next(), nil, ctx.Done()) {
			return err
		}
	}
}
