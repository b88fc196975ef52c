package rabbitmq

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/millrace-go/millrace/bus"
)

// publisher publishes through one pipeline. With two, 16 goroutines that publish one by one were as fast, with four
// and eight 10 to 20 % slower: each of the broker's confirms and writes had fewer messages to share its cost.
type publisher struct {
	cfg  Config
	link *link
	turn atomic.Uint32 // for messages without a key
	size sizeLimit

	mu  sync.Mutex
	now *publishing
}

func newPublisher(c Config, l *link) *publisher {
	return &publisher{cfg: c, link: l, size: sizeLimit{own: c.MaxMessage + storedRoom}}
}

// publishing is what a publisher has set up in one session.
type publishing struct {
	session *session

	mu     sync.Mutex
	opened *attempt[*pipeline]
	topics map[string]*attempt[struct{}]
}

// attempt is something that several callers wait for, each within its own context.
type attempt[T any] struct {
	done chan struct{}
	v    T
	err  error
}

func start[T any](f func() (T, error)) *attempt[T] {
	a := &attempt[T]{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.v, a.err = f()
	}()
	return a
}

func (a *attempt[T]) ended() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

func (a *attempt[T]) wait(ctx context.Context) (T, error) {
	if a.ended() {
		return a.v, a.err
	}
	select {
	case <-a.done:
		return a.v, a.err
	case <-ctx.Done():
		var zero T
		return zero, context.Cause(ctx)
	}
}

// open returns the present session's state. It waits for a connection, and while the broker blocks publishers.
func (p *publisher) open(ctx context.Context) (*publishing, error) {
	s, err := p.link.getUnblocked(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil || p.now.session != s {
		p.now = &publishing{session: s, topics: map[string]*attempt[struct{}]{}}
	}
	return p.now, nil
}

// pipeline returns the pipeline. One that has ended is replaced.
func (q *publishing) pipeline(ctx context.Context) (*pipeline, error) {
	q.mu.Lock()
	a := q.opened
	if a == nil || a.ended() && (a.err != nil || a.v.ch.IsClosed()) {
		// What closed the channel may be that an exchange is gone: declare again.
		clear(q.topics)
		a = start(func() (*pipeline, error) { return newPipeline(q.session.conn) })
		q.opened = a
	}
	q.mu.Unlock()
	return a.wait(ctx)
}

// declare declares the topic, once in a session.
func (q *publishing) declare(ctx context.Context, cfg Config, topic string) error {
	q.mu.Lock()
	a := q.topics[topic]
	if a == nil || a.ended() && a.err != nil {
		a = start(func() (struct{}, error) {
			t := &topology{session: q.session}
			defer t.close()
			return struct{}{}, t.declareTopic(cfg, topic)
		})
		q.topics[topic] = a
	}
	q.mu.Unlock()
	_, err := a.wait(ctx)
	return err
}

func (q *publishing) forget(topic string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.topics, topic)
}

// publish publishes the messages of one call.
func (p *publisher) publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	q, pipe, err := p.ready(ctx, topic)
	if err != nil {
		return bus.FailAll(len(msgs), &bus.Error{
			Op: "publish", Broker: broker, Topic: topic, Err: err, Definite: true, Retryable: retryable(err),
		})
	}
	frame := max(0, q.session.conn.Config.FrameSize-8)
	errs := pipe.publish(ctx, len(msgs), func(i int, x *parcel) error {
		m := msgs[i]
		if m.Size() > p.cfg.MaxMessage {
			return bus.ErrTooLarge
		}
		if err := p.size.check(len(m.Payload)); err != nil {
			return err
		}
		pub, err := encode(m, frame)
		if err != nil {
			return err
		}
		s := slot(m.Key)
		if m.Key == "" {
			s = int(p.turn.Add(1) % slots)
		}
		*x = parcel{topic, routingKeys[s], pub}
		return nil
	})
	if errs == nil {
		return nil
	}
	p.size.learn(errs)
	return p.explain(ctx, q, topic, errs)
}

// ready prepares a session for publishing to topic. While nothing has been sent, a session that breaks is no reason
// to fail: the next one is waited for.
func (p *publisher) ready(ctx context.Context, topic string) (*publishing, *pipeline, error) {
	for n := 0; ; n++ {
		q, err := p.open(ctx)
		if err != nil {
			return nil, nil, err
		}
		var pipe *pipeline
		if pipe, err = q.pipeline(ctx); err == nil {
			if err = q.declare(ctx, p.cfg, topic); err == nil {
				return q, pipe, nil
			}
		}
		if !q.session.conn.IsClosed() || ctx.Err() != nil || !pause(ctx, backoff(n)) {
			return nil, nil, err
		}
	}
}

// send publishes n parcels of this driver's own, and returns what failed.
func (p *publisher) send(ctx context.Context, n int, fill func(i int, x *parcel) error) error {
	return errors.Join(slices.Compact(p.sendEach(ctx, n, fill))...) // without a connection, all have one reason
}

// sendEach is send that tells each parcel's fate: the result is nil if all are stored, and else index-aligned.
func (p *publisher) sendEach(ctx context.Context, n int, fill func(i int, x *parcel) error) []error {
	q, err := p.open(ctx)
	var pipe *pipeline
	if err == nil {
		pipe, err = q.pipeline(ctx)
	}
	if err != nil {
		return slices.Repeat([]error{&refusal{err: err, definite: true}}, n)
	}
	errs := pipe.publish(ctx, n, func(i int, x *parcel) error {
		err := fill(i, x)
		if err == nil {
			if err = p.size.check(len(x.Body)); err != nil {
				recycle(x.Headers)
			}
		}
		return err
	})
	p.size.learn(errs)
	return errs
}

// wake publishes a wake marker to a lane's queue.
func (p *publisher) wake(ctx context.Context, queue string) error {
	return p.send(ctx, 1, func(_ int, x *parcel) error {
		x.key, x.Publishing = queue, marker(markWake)
		return nil
	})
}

// explain turns refusals into the contract's errors.
func (p *publisher) explain(ctx context.Context, q *publishing, topic string, errs []error) error {
	full := false
	for _, err := range errs {
		if r, ok := errors.AsType[*refusal](err); ok && r.nack {
			full = p.unroutedFull(ctx, q, topic)
			break
		}
	}
	for i, err := range errs {
		if err == nil {
			continue
		}
		e := &bus.Error{Op: "publish", Broker: broker, Topic: topic, Err: err, Definite: true}
		if r, ok := errors.AsType[*refusal](err); ok {
			// Whatever ended a channel or connection, it is opened again, and the topic declared.
			e.Err, e.Definite, e.Retryable = r.err, r.definite, true
			if r.nack && full {
				e.Err, e.Definite = errUnroutedFull, true
			}
			if errors.Is(r.err, errReturned) {
				q.forget(topic)
			}
		}
		errs[i] = e
	}
	return &bus.PublishError{Errs: errs}
}

var errUnroutedFull = errors.New("the topic has no group yet, and the queue that keeps its messages is full")

// unroutedFull says whether the topic's unrouted queue is full, which is why the broker refuses messages of a topic
// without groups. (When a group's queue refuses a message, another group's may have taken it: its fate is unknown.)
func (p *publisher) unroutedFull(ctx context.Context, q *publishing, topic string) bool {
	full, err := call(ctx, q.session, func(_ context.Context, t *topology) (bool, error) {
		u, ok, err := t.queue(unroutedName(topic))
		return ok && u.Messages >= p.cfg.Unrouted, err
	})
	return err == nil && full
}
