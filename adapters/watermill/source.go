package watermill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/epoch"
)

// source is one subscription, a lane of its own. Watermill does not report the group's other
// members, so no lane is ever revoked. The lane is lost and owned anew when the pub/sub ends the
// subscription by itself.
type source struct {
	driver   *busDriver
	topic    string
	group    string
	observer bus.LaneObserver

	closed  chan struct{}
	closing sync.Once
	err     error

	ahead *message.Message // read, but too large for the Receive that read it; as ends, of the one caller of Receive
	ends  int              // subscriptions that ended in a row, without a message

	renewing sync.Mutex // one at a time makes the subscription again; taken before mu
	mu       sync.Mutex
	sub      message.Subscriber
	messages <-chan *message.Message
	lane     bus.Lane
	position int64
	open     map[int64]*message.Message // received and not settled, by position
}

func newSource(d *busDriver, topic, group string, o bus.LaneObserver) *source {
	return &source{driver: d, topic: topic, group: group, observer: o, closed: make(chan struct{})}
}

// subscribe begins an ownership. The subscription lives until its subscriber is closed, not until a
// context ends: at a context's end, SQL's subscriber rolls back acked messages.
func (s *source) subscribe() error {
	sub, err := s.driver.subscribers(s.group)
	if err != nil {
		return err
	}
	messages, err := sub.Subscribe(context.Background(), s.topic)
	if err != nil {
		return errors.Join(err, sub.Close())
	}
	id := epoch.Next()
	lane := bus.Lane{ID: int32(id & 0x7fffffff), Epoch: id}
	s.mu.Lock()
	select {
	case <-s.closed:
		s.mu.Unlock()
		return errors.Join(bus.ErrClosed, sub.Close())
	default:
	}
	s.sub, s.messages, s.lane = sub, messages, lane
	s.position, s.open = 0, map[int64]*message.Message{}
	s.mu.Unlock()
	s.observer.Assigned([]bus.Lane{lane})
	return nil
}

// resubscribe follows when the pub/sub has closed the channel by itself. It is called off the
// goroutine in Receive, which may not wait for it to its end, and call it again.
func (s *source) resubscribe(ended <-chan *message.Message) error {
	s.renewing.Lock()
	defer s.renewing.Unlock()
	s.mu.Lock()
	if s.messages != ended {
		s.mu.Unlock()
		return nil
	}
	old, sub := s.lane, s.sub
	s.sub = nil
	s.mu.Unlock()
	var err error
	if sub != nil { // otherwise the last try to subscribe failed
		s.observer.Lost([]bus.Lane{old}, errors.New("the pub/sub ended the subscription"))
		err = sub.Close()
	}
	return errors.Join(err, s.subscribe())
}

// Receive implements bus.Source.
func (s *source) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	n := 0
	for {
		w, err := s.next(ctx, n == 0)
		if err != nil {
			return 0, s.driver.fail("receive", s.topic, err)
		}
		if w == nil {
			return n, nil
		}
		m := FromWatermill(w)
		size := m.Size()
		if n > 0 && size > maxBytes {
			s.ahead = w
			return n, nil
		}
		dst[n] = s.deliver(w, m)
		maxBytes -= size
		if n++; n == len(dst) {
			return n, nil
		}
	}
}

// next returns the next message, or nil if there is none and it is not to wait.
func (s *source) next(ctx context.Context, wait bool) (*message.Message, error) {
	select {
	case <-s.closed:
		return nil, bus.ErrClosed
	default:
	}
	if w := s.ahead; w != nil {
		s.ahead = nil
		return w, nil
	}
	for {
		s.mu.Lock()
		messages := s.messages
		s.mu.Unlock()
		if !wait {
			select {
			case w := <-messages: // nil if it is closed, which the next Receive finds out again
				return w, nil
			default:
				return nil, nil
			}
		}
		select {
		case w, ok := <-messages:
			if ok {
				s.ends = 0
				return w, nil
			}
		case <-s.closed:
			return nil, bus.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if err := s.pause(ctx); err != nil {
			return nil, err
		}
		if err := within(ctx, func() error { return s.resubscribe(messages) }); err != nil {
			return nil, fmt.Errorf("the subscription ended, and subscribing again failed: %w", err)
		}
	}
}

// pause waits before the subscription is made again: not at all the first time, then longer and
// longer, so that a pub/sub that ends each at once is not asked without a pause.
func (s *source) pause(ctx context.Context) error {
	var d time.Duration
	if s.ends++; s.ends > 1 {
		d = backoff.Pause(s.ends - 1)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closed:
	}
	if s.isClosed() {
		return bus.ErrClosed
	}
	return nil
}

func (s *source) deliver(w *message.Message, m *bus.Message) bus.Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := bus.Token{Lane: s.lane.ID, Epoch: s.lane.Epoch, Position: s.position}
	s.open[s.position] = w
	s.position++
	if m.ID == "" { // a foreign message; Watermill has no place that lasts, so a repeat has another id
		m.ID = driver.TransientID(s.topic, t)
	}
	if m.Time.IsZero() {
		m.Time = time.Now()
	}
	return bus.Delivery{Message: m, Token: t, Topic: s.topic}
}

// Settle implements bus.Source. The pub/sub has given up a message with an ended context; the
// message will come again.
func (s *source) Settle(ctx context.Context, tokens []bus.Token) error {
	acked := make([]*message.Message, 0, len(tokens))
	stale := 0
	s.mu.Lock()
	for _, t := range tokens {
		if t.Lane != s.lane.ID || t.Epoch != s.lane.Epoch || s.isClosed() {
			stale++
			continue
		}
		w := s.open[t.Position]
		if w == nil {
			continue // settled before
		}
		delete(s.open, t.Position)
		if w.Context().Err() != nil || !w.Ack() {
			stale++
			continue
		}
		acked = append(acked, w)
	}
	s.mu.Unlock()
	s.await(ctx, acked)
	if stale > 0 {
		return s.driver.fail("settle", s.topic, fmt.Errorf("%d of %d: %w", stale, len(tokens), bus.ErrStale))
	}
	return nil
}

func (s *source) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// patience bounds the wait for a pub/sub that does not end its messages' contexts.
const patience = time.Second

// await waits until the pub/sub has seen the acks: then it ends the messages' contexts. A Close
// before that makes most of them drop the ack.
func (s *source) await(ctx context.Context, acked []*message.Message) {
	t := time.NewTimer(patience)
	defer t.Stop()
	for _, w := range acked {
		select {
		case <-w.Context().Done():
		case <-ctx.Done():
			return
		case <-t.C:
			return
		}
	}
}

// Close implements bus.Source.
func (s *source) Close(ctx context.Context) error {
	s.closing.Do(func() {
		s.mu.Lock()
		close(s.closed)
		sub, messages := s.sub, s.messages
		s.sub = nil
		s.mu.Unlock()
		if sub == nil {
			return
		}
		go func() { // a sender must not wait for a receiver
			for w := range messages {
				w.Nack()
			}
		}()
		if err := within(ctx, sub.Close); err != nil {
			s.err = s.driver.fail("close", s.topic, err)
		}
		s.driver.forget(s)
	})
	return s.err
}
