package rabbitmq

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// publisher publishes through a few pipelines for each topic ([strands]). It has one pipeline for
// each queue that this driver itself writes to: a queue that does not confirm takes the room of its
// own pipeline only.
type publisher struct {
	cfg  Config
	link *amqplink.Link
	last atomic.Uint32 // the slot of the last message without a key
	size sizeLimit

	mu  sync.Mutex
	now *publishing
}

func newPublisher(c Config, l *amqplink.Link) *publisher {
	return &publisher{cfg: c, link: l, size: sizeLimit{own: c.MaxMessage + storedRoom}}
}

// publishing holds the things that a publisher has set up in one session.
type publishing struct {
	session   *amqplink.Session
	pipelines *amqplink.Pipelines // by topic or queue

	mu     sync.Mutex
	topics map[string]*amqplink.Attempt[struct{}]
}

// open returns the present session's state. It waits for a connection, and while the broker blocks
// publishers.
func (p *publisher) open(ctx context.Context) (*publishing, error) {
	s, err := p.link.GetUnblocked(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil || p.now.session != s {
		p.now = &publishing{session: s, pipelines: amqplink.NewPipelines(s), topics: map[string]*amqplink.Attempt[struct{}]{}}
	}
	return p.now, nil
}

// declare declares the topic, once in a session.
func (q *publishing) declare(ctx context.Context, cfg Config, topic string) error {
	q.mu.Lock()
	a := q.topics[topic]
	if a == nil || a.Failed() {
		a = amqplink.Start(func() (struct{}, error) {
			t := &topology{session: q.session}
			defer t.close()
			return struct{}{}, t.declareTopic(cfg, topic)
		})
		q.topics[topic] = a
	}
	q.mu.Unlock()
	_, err := a.Wait(ctx)
	return err
}

// strands is how many pipelines a topic has. Messages of equal keys go through the same pipeline.
// Together they have room enough for large batches, and each has little enough under way: see
// amqplink.PipelineMessages.
const strands = 4

// strandNames are the suffixes of a topic's name that make the names of its pipelines.
var strandNames = [strands]string{"", "::1", "::2", "::3"}

// publish publishes the messages of one call.
func (p *publisher) publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	if len(msgs) == 1 {
		slot := p.slotFor(msgs[0])
		return p.explain(ctx, topic, p.strand(ctx, topic, slot%strands, 1, func(int) (*bus.Message, int) { return msgs[0], slot }))
	}
	var index, slots [strands][]int
	for i, m := range msgs {
		slot := p.slotFor(m)
		index[slot%strands] = append(index[slot%strands], i)
		slots[slot%strands] = append(slots[slot%strands], slot)
	}
	var all sync.WaitGroup
	var outcomes [strands][]error
	for s := range strands {
		run := func() {
			outcomes[s] = p.strand(ctx, topic, s, len(index[s]), func(k int) (*bus.Message, int) { return msgs[index[s][k]], slots[s][k] })
		}
		if s < strands-1 && len(index[s]) > 0 {
			all.Go(run)
		} else if len(index[s]) > 0 {
			run()
		}
	}
	all.Wait()
	var errs []error
	for s := range strands {
		for k, err := range outcomes[s] {
			if errs == nil {
				errs = make([]error, len(msgs))
			}
			errs[index[s][k]] = err
		}
	}
	return p.explain(ctx, topic, errs)
}

// slotFor is the slot of a message. Messages without a key go to one slot after
// the other.
func (p *publisher) slotFor(m *bus.Message) int {
	if m.Key == "" {
		return int(p.last.Add(1) % slots)
	}
	return slot(m.Key)
}

// strand publishes n messages through one of the topic's pipelines. The result is as in
// Pipeline.Publish.
func (p *publisher) strand(ctx context.Context, topic string, strand, n int, message func(k int) (*bus.Message, int)) []error {
	q, pipe, done, err := p.ready(ctx, topic, strand)
	if err != nil {
		return slices.Repeat([]error{&amqplink.RefusedError{Err: err, Definite: true, Final: !amqplink.Retryable(err)}}, n)
	}
	defer done()
	frame := max(0, q.session.Conn.Config.FrameSize-8)
	errs := pipe.Publish(ctx, n, func(k int, x *amqplink.Parcel) error {
		m, slot := message(k)
		if m.Size() > p.cfg.MaxMessage {
			return bus.ErrTooLarge
		}
		if err := p.size.check(len(m.Payload)); err != nil {
			return err
		}
		pub, err := encode(m, frame)
		if err == nil {
			*x = amqplink.Parcel{Exchange: topic, Key: routingKeys[slot], Publishing: pub}
		}
		return err
	})
	p.size.learn(errs)
	if slices.ContainsFunc(errs, func(err error) bool { return amqplink.HasCode(err, amqp.NotFound) }) {
		q.forget(topic)
	}
	return errs
}

// forget has a topic declared again after its exchange is gone.
func (q *publishing) forget(topic string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.topics, topic)
}

// ready prepares a session for publishing to topic. While nothing has been sent, a session that
// breaks is no reason to fail: ready waits for the next session.
func (p *publisher) ready(ctx context.Context, topic string, strand int) (*publishing, *amqplink.Pipeline, func(), error) {
	for n := 0; ; n++ {
		q, err := p.open(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		pipe, done, err := q.pipelines.Get(ctx, topic+strandNames[strand])
		if err == nil {
			if err = q.declare(ctx, p.cfg, topic); err == nil {
				return q, pipe, done, nil
			}
			done()
		}
		if !q.session.Conn.IsClosed() || ctx.Err() != nil || !backoff.Sleep(ctx, backoff.Pause(n+1)) {
			return nil, nil, nil, err
		}
	}
}

// send publishes n parcels of this driver's own, and returns their errors.
func (p *publisher) send(ctx context.Context, n int, fill func(i int, x *amqplink.Parcel) error) error {
	return errors.Join(slices.Compact(p.sendEach(ctx, n, fill))...) // without a connection, all have one reason
}

// sendEach is a send that tells each parcel's fate: the result is nil if all are stored, and else
// index-aligned. Parcels for one queue are stored in their order.
func (p *publisher) sendEach(ctx context.Context, n int, fill func(i int, x *amqplink.Parcel) error) []error {
	q, err := p.open(ctx)
	if err != nil {
		return slices.Repeat([]error{&amqplink.RefusedError{Err: err, Definite: true}}, n)
	}
	parcels, errs := make([]amqplink.Parcel, n), make([]error, n)
	queues := map[string][]int{}
	for i := range n {
		if errs[i] = fill(i, &parcels[i]); errs[i] != nil {
			continue
		}
		if errs[i] = p.size.check(len(parcels[i].Body)); errs[i] != nil {
			amqplink.Recycle(parcels[i].Headers)
		} else {
			name := parcels[i].Exchange + parcels[i].Key // one of them is empty
			queues[name] = append(queues[name], i)
		}
	}
	var all sync.WaitGroup
	for name, index := range queues {
		all.Go(func() {
			pipe, done, err := q.pipelines.Get(ctx, name)
			if err != nil {
				for _, i := range index {
					errs[i] = &amqplink.RefusedError{Err: err, Definite: true}
				}
				return
			}
			defer done()
			for k, err := range pipe.Publish(ctx, len(index), func(k int, x *amqplink.Parcel) error {
				*x = parcels[index[k]]
				return nil
			}) {
				errs[index[k]] = err
			}
		})
	}
	all.Wait()
	p.size.learn(errs)
	if slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		return errs
	}
	return nil
}

// wake publishes a wake marker to a lane's queue.
func (p *publisher) wake(ctx context.Context, queue string) error {
	return p.send(ctx, 1, func(_ int, x *amqplink.Parcel) error {
		x.Key, x.Publishing = queue, marker(markWake)
		return nil
	})
}

// explain turns the errors of a publish into the contract's error.
func (p *publisher) explain(ctx context.Context, topic string, errs []error) error {
	full := false
	for _, err := range errs {
		if r, ok := errors.AsType[*amqplink.RefusedError](err); ok && r.Nack {
			full = p.unroutedFull(ctx, topic)
			break
		}
	}
	failed := false
	for i, err := range errs {
		if err == nil {
			continue
		}
		failed = true
		e := &bus.Error{Op: "publish", Broker: broker, Topic: topic, Err: err, Definite: true}
		if r, ok := errors.AsType[*amqplink.RefusedError](err); ok {
			// Whatever ended a channel or connection, it is opened again, and the topic declared.
			e.Err, e.Definite, e.Retryable = r.Err, r.Definite, !r.Final
			if r.Nack && full {
				e.Err, e.Definite = errUnroutedFull, true
			}
			if errors.Is(r.Err, amqplink.ErrReturned) {
				p.forget(topic)
			}
		}
		errs[i] = e
	}
	if !failed {
		return nil
	}
	return &bus.PublishError{Errs: errs}
}

// forget has the topic declared again.
func (p *publisher) forget(topic string) {
	p.mu.Lock()
	q := p.now
	p.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.topics, topic)
}

var errUnroutedFull = errors.New("the topic has no group yet, and the queue that keeps its messages is full")

// unroutedFull says whether the topic's unrouted queue is full: then the broker refuses messages of
// a topic without groups. (When a group's queue refuses a message, another group's may have taken
// it: its fate is unknown.)
func (p *publisher) unroutedFull(ctx context.Context, topic string) bool {
	s, err := p.link.Get(ctx)
	if err != nil {
		return false
	}
	full, err := call(ctx, s, func(_ context.Context, t *topology) (bool, error) {
		if grouped, err := t.exchangeExists(groupsName(topic)); err != nil || grouped {
			return false, err
		}
		u, ok, err := t.queue(unroutedName(topic))
		return ok && u.Messages >= p.cfg.Unrouted, err
	})
	return err == nil && full
}
