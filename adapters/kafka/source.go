package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/condition"
)

// source is one member of a group on one topic.
type source struct {
	driver   *busDriver
	sub      bus.Subscription
	parking  string // the parking topic
	observer bus.LaneObserver
	// conditions tells the observer what does not work.
	conditions       *condition.Reporter
	pulse            pulse
	formerGeneration atomic.Int32 // of the group, when it let this member go; 0: it has not
	start            start

	ctx        context.Context // ends when Close begins
	cancel     context.CancelFunc
	dirty      chan struct{} // wakes the committer; holds one value
	ready      chan struct{} // wakes the listener; holds one value
	gone       chan struct{} // wakes the remover; holds one value
	commitLock chan struct{} // holds one value: commits are made one at a time
	tidy       chan struct{} // holds one value: records are removed by one at a time
	idle       chan struct{} // closed when the background has ended
	left       chan struct{} // closed when Close is complete
	err        error         // Close's, set before left is closed

	decoder decoder    // Receive's
	batch   []accepted // Receive's: the deliveries that it is about to return

	partitions int       // the watcher's: how many the topic has
	grown      time.Time // and when it saw the last ones come

	writer  writer
	telling sync.Mutex // held while the observer hears of new lanes or others' parked messages

	beginning sync.WaitGroup // lanes that begin late or anew

	mu         sync.Mutex
	client     *kgo.Client
	stopClient context.CancelFunc // ends all that the client does, whatever it waits for
	topicID    [16]byte           // of the positions' topic; zero where the broker has none
	lanes      map[int32]*lane
	coming     map[int32]*lane // that are assigned and have not begun
	fetchedAs  map[int32]committedOffset
	fetchLogs  map[int32]*fetchLog
	queue      []run               // polled and not delivered, in order
	reports    []error             // for Receive to return
	reported   bool                // Receive has returned one, and not said yet that it goes on
	failing    map[int32]time.Time // partitions that cannot be read, and when their last error came
	polling    bool                // Receive is between the start of a poll and the end of queueing its records
	stopPoll   context.CancelFunc
	assigning  int // assignments that wait for the poll to end, or are under way
	change     *sync.Cond
	room       int // for a commit's metadata
	closed     bool
}

// run is a stretch of a lane's records.
type run struct {
	lane    *lane
	from    int64 // nothing below is to come, whatever was expected
	records []*kgo.Record
}

type accepted struct {
	lane   bus.Lane
	record *kgo.Record
}

func newSource(d *busDriver, s bus.Subscription, o bus.LaneObserver, at start) *source {
	src := &source{
		driver:     d,
		sub:        s,
		observer:   o,
		conditions: condition.NewReporter(o),
		failing:    map[int32]time.Time{},
		start:      at,
		dirty:      make(chan struct{}, 1),
		ready:      make(chan struct{}, 1),
		gone:       make(chan struct{}, 1),
		commitLock: make(chan struct{}, 1),
		tidy:       make(chan struct{}, 1),
		idle:       make(chan struct{}),
		left:       make(chan struct{}),
		lanes:      map[int32]*lane{},
		coming:     map[int32]*lane{},
		parking:    parkingTopic(s.Group, s.Topic),
		fetchLogs:  map[int32]*fetchLog{},
		room:       metadataRoom,
	}
	src.commitLock <- struct{}{}
	src.tidy <- struct{}{}
	src.ctx, src.cancel = context.WithCancel(context.Background())
	src.change = sync.NewCond(&src.mu)
	return src
}

// Receive implements bus.Source.
func (s *source) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := s.take(dst, maxBytes)
		if n > 0 || err != nil || s.goesOn() {
			return n, err
		}
		if err := s.poll(ctx); err != nil {
			return 0, err
		}
	}
}

// take fills dst with records polled before, or returns a report that is due.
func (s *source) take(dst []bus.Delivery, maxBytes int) (int, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, fail("receive", s.sub.Topic, bus.ErrClosed)
	}
	s.accept(len(dst), maxBytes)
	if len(s.batch) == 0 && len(s.reports) > 0 {
		err := s.reports[0]
		s.reports = s.reports[1:]
		s.reported = true
		s.mu.Unlock()
		return 0, err
	}
	s.mu.Unlock()
	return s.deliver(dst), nil
}

// goesOn says whether Receive has to tell that it goes on after an error.
func (s *source) goesOn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.reported
	s.reported = false
	return was
}

// accept moves records from the queue to the batch, up to these bounds: from here on they are in flight. Called with
// the lock held.
func (s *source) accept(count, bytes int) {
	for len(s.queue) > 0 && len(s.batch) < count {
		q := &s.queue[0]
		l := q.lane
		l.window.Advance(q.from)
		for len(q.records) > 0 && len(s.batch) < count {
			r := q.records[0]
			if l.skips(r) {
				l.window.Advance(r.Offset + 1)
				q.records = q.records[1:]
				continue
			}
			size := recordSize(r)
			if len(s.batch) > 0 && size > bytes {
				return
			}
			q.records = q.records[1:]
			if l.window.Add(r.Offset) {
				s.batch = append(s.batch, accepted{lane: l.Lane, record: r})
				bytes -= size
			}
		}
		if len(q.records) == 0 {
			s.queue[0] = run{}
			s.queue = s.queue[1:]
		}
	}
}

// deliver decodes the batch into dst. It needs no lock: the lanes may be gone, and then the tokens are stale.
func (s *source) deliver(dst []bus.Delivery) int {
	reserved := 0
	for i := range s.batch {
		if reserved == 0 {
			reserved = s.decoder.reserve(s.batch[i:])
		}
		reserved--
		a := &s.batch[i]
		dst[i] = bus.Delivery{
			Message: s.decoder.message(a.record),
			Token:   bus.Token{Lane: a.lane.ID, Epoch: a.lane.Epoch, Position: a.record.Offset},
			Topic:   s.sub.Topic,
			Group:   s.sub.Group,
			Attempt: 1,
		}
		a.record.Recycle()
	}
	n := len(s.batch)
	clear(s.batch) // the records' buffers must not live on
	s.batch = s.batch[:0]
	return n
}

// background runs until Close begins.
func (s *source) background() {
	defer close(s.idle)
	var wg sync.WaitGroup
	wg.Go(s.committer)
	wg.Go(s.watcher)
	wg.Go(s.listener)
	wg.Go(s.remover)
	wg.Go(s.pinger)
	wg.Wait()
	s.beginning.Wait()
}

// Settle implements bus.Source.
func (s *source) Settle(_ context.Context, tokens []bus.Token) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fail("settle", s.sub.Topic, bus.ErrClosed)
	}
	stale := 0
	var l *lane
	for _, t := range tokens {
		if l == nil || l.ID != t.Lane {
			l = s.lanes[t.Lane]
		}
		if l == nil || l.Epoch != t.Epoch {
			stale++
			continue
		}
		if !t.Parked {
			l.window.Done(t.Position)
		}
		l.parking.finish(t)
	}
	s.mu.Unlock()
	s.wakeCommitter()
	if stale > 0 {
		return fail("settle", s.sub.Topic, fmt.Errorf("%d of %d: %w", stale, len(tokens), bus.ErrStale))
	}
	return nil
}

// report leaves an error for Receive to return. An error that waits already is not left twice.
// Called with the lock held.
func (s *source) report(err error) {
	const most = 16
	for _, r := range s.reports {
		if r.Error() == err.Error() {
			return
		}
	}
	if len(s.reports) < most {
		s.reports = append(s.reports, err)
	}
}

// Close implements bus.Source.
func (s *source) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		select {
		case <-s.left:
			return s.err
		case <-ctx.Done():
			return fail("close", s.sub.Topic, ctx.Err())
		}
	}
	s.closed = true
	s.queue = nil
	if s.polling {
		s.stopPoll()
	}
	s.mu.Unlock()
	defer close(s.left)
	s.cancel()

	var errs []error
	select {
	case <-s.idle:
	case <-ctx.Done(): // its commit is under way for long, and ours will not do better
	}
	if err := s.commitAll(ctx); err != nil {
		errs = append(errs, fmt.Errorf("settled messages will be delivered again, because they could not be committed: %w", err))
	}
	s.mu.Lock()
	clear(s.lanes) // from here on every token is stale
	s.mu.Unlock()
	if err := s.leaveGroup(ctx); err != nil {
		errs = append(errs, fmt.Errorf("leave the group: %w", err))
	}
	select {
	case <-s.commitLock: // a transaction ends when Close begins
		s.writer.drop()
		s.commitLock <- struct{}{}
	case <-ctx.Done():
		go func() {
			<-s.commitLock
			s.writer.drop()
			s.commitLock <- struct{}{}
		}()
	}
	s.driver.mu.Lock()
	delete(s.driver.sources, s)
	s.driver.mu.Unlock()
	if len(errs) > 0 {
		s.err = fail("close", s.sub.Topic, errors.Join(errs...))
	}
	return s.err
}

// leaveGroup leaves the group within ctx. The client would first wait until it has joined, if it is at that: as long as the slowest member takes.
func (s *source) leaveGroup(ctx context.Context) error {
	if s.instance() != nil { // it stays, unless the client knows that the group waits for it
		err := s.client.LeaveGroupContext(ctx)
		s.stopClient()
		s.client.Close()
		return err
	}
	s.stopClient()
	s.client.Close()
	as := s.membership()
	if as.id == "" {
		return nil
	}
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group, req.MemberID = s.sub.Group, as.id
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID = as.id
	req.Members = append(req.Members, m)
	resp, err := req.RequestWith(ctx, s.driver.client)
	if err != nil {
		return err
	}
	err = kerr.ErrorForCode(resp.ErrorCode)
	for _, m := range resp.Members {
		err = cmp.Or(err, kerr.ErrorForCode(m.ErrorCode))
	}
	if errors.Is(err, kerr.UnknownMemberID) { // the group has let it go before
		return nil
	}
	return err
}
