package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/internal/budget"
)

// Bounds of the messages that a pipeline has under way. When a queue does not confirm, its channel
// at the broker soon takes no more. With 200 to 400 more messages before that channel, the broker
// reads no more from the whole connection. So a pipeline has fewer under way.
const (
	pipelineMessages = 224
	pipelineBytes    = 8 << 20
)

// pipeline is a channel in confirm mode. A caller sends all its messages, within the pipeline's
// budget, and then waits for the confirms. A pipeline serves one session; another replaces it after
// the broker has closed its channel.
type pipeline struct {
	ch     *amqp.Channel
	budget *budget.Budget
	closed chan struct{} // closed when the channel has ended
	cause  error         // why, set before

	mu       sync.Mutex
	returns  chan amqp.Return
	returned map[route]int // returned and not yet asked for
	some     atomic.Bool   // returned is not empty
}

func newPipeline(conn *amqp.Connection) (*pipeline, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := ch.Confirm(false); err != nil {
		return nil, err
	}
	p := &pipeline{
		ch:     ch,
		budget: budget.New(pipelineMessages, pipelineBytes),
		closed: make(chan struct{}),
		// Room for a return of everything under way, so that the reader of the connection never
		// waits here.
		returns:  ch.NotifyReturn(make(chan amqp.Return, pipelineMessages)),
		returned: map[route]int{},
	}
	closes := ch.NotifyClose(make(chan *amqp.Error, 1))
	go func() {
		p.cause = errors.New("channel closed")
		if err := <-closes; err != nil {
			p.cause = err
		}
		close(p.closed)
	}()
	return p, nil
}

// parcel is one message on its way.
type parcel struct {
	exchange, key string
	amqp.Publishing
}

func (x *parcel) size() int { return len(x.Body) + 512 }

// pending is a parcel that was sent.
type pending struct {
	confirm *amqp.DeferredConfirmation
	size    int
	route   route
}

// route holds the fields by which the broker's return identifies a parcel.
type route struct{ exchange, key, id string }

// refusal is why a parcel is not known to be stored.
type refusal struct {
	err error
	// definite: it was not stored.
	definite bool
	// final: it cannot be published later either.
	final bool
	// nack: the broker refused it, because a queue is full or failed.
	nack bool
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

var (
	errNack     = errors.New("the broker refused the message")
	errReturned = errors.New("the broker has no queue for the message")
	errNotSent  = errors.New("not sent, because an earlier message of the call failed")
)

// publish sends n parcels, which fill makes one by one, and waits for the broker's confirms. The
// result is nil if all are stored. Otherwise it is index-aligned: each parcel that is not stored
// has a *refusal or the error of fill.
//
// Once a parcel's fate is unknown, nothing further is sent: later messages must not overtake a
// message that is published again.
func (p *pipeline) publish(ctx context.Context, n int, fill func(i int, x *parcel) error) []error {
	var one [1]pending
	sent := one[:0]
	if n > 1 {
		sent = make([]pending, 0, n)
	}
	var index []int // of sent in the call, once they differ
	var errs []error
	failed := func(i int, err error) {
		if errs == nil {
			errs = make([]error, n)
		}
		errs[i] = err
	}
	place := func(k int) int {
		if index != nil {
			return index[k]
		}
		return k
	}
	waited, stopped := 0, false
	settle := func() {
		if r := p.wait(ctx, &sent[waited]); r != nil {
			failed(place(waited), r)
			stopped = stopped || !r.definite
		}
		waited++
	}
	for i := range n {
		if stopped {
			failed(i, &refusal{err: errNotSent, definite: true})
			continue
		}
		var x parcel
		if err := fill(i, &x); err != nil {
			failed(i, err)
			if index == nil {
				index = make([]int, len(sent), n)
				for k := range index {
					index[k] = k
				}
			}
			continue
		}
		size := x.size()
		for !p.budget.TryTake(size) {
			// Own confirms first: a caller that waits for room must not itself take the room.
			if waited < len(sent) {
				settle()
				if stopped {
					break
				}
				continue
			}
			if !p.budget.Take(ctx, p.closed, size) {
				stopped = true
			}
			break
		}
		if stopped {
			recycle(x.Headers)
			failed(i, p.notSent(ctx))
			continue
		}
		confirm, err := p.ch.PublishWithDeferredConfirm(x.exchange, x.key, true, false, x.Publishing)
		recycle(x.Headers)
		if err != nil { // the channel had ended before
			p.budget.Give(size)
			failed(i, &refusal{err: err, definite: true})
			stopped = true
			continue
		}
		sent = append(sent, pending{confirm, size, route{x.exchange, x.key, x.MessageId}})
		if index != nil {
			index = append(index, i)
		}
	}
	for waited < len(sent) {
		if ctx.Err() != nil {
			p.abandon(ctx, sent[waited:], func(k int, err error) { failed(place(waited+k), err) })
			break
		}
		settle()
	}
	return errs
}

// notSent is the refusal of a parcel for which there was no room in time.
func (p *pipeline) notSent(ctx context.Context) *refusal {
	select {
	case <-p.closed:
		return &refusal{err: p.cause, definite: true}
	default:
	}
	if ctx.Err() != nil {
		return &refusal{err: fmt.Errorf("no room in the pipeline: %w", context.Cause(ctx)), definite: true}
	}
	return &refusal{err: errNotSent, definite: true}
}

// wait waits for x's confirm.
func (p *pipeline) wait(ctx context.Context, x *pending) *refusal {
	select {
	case <-x.confirm.Done():
		return p.outcome(x)
	default:
	}
	select {
	case <-x.confirm.Done():
		return p.outcome(x)
	case <-ctx.Done():
		go p.release([]pending{*x})
		return unconfirmed(ctx)
	}
}

func unconfirmed(ctx context.Context) *refusal {
	return &refusal{err: fmt.Errorf("waiting for the broker's confirm: %w", context.Cause(ctx))}
}

// outcome reads a confirm that has come, and frees its room.
func (p *pipeline) outcome(x *pending) *refusal {
	returned := p.wasReturned(x)
	p.budget.Give(x.size)
	switch {
	case returned:
		return &refusal{err: errReturned, definite: true}
	case x.confirm.Acked():
		return nil
	case !p.ch.IsClosed():
		return &refusal{err: errNack, nack: true}
	default: // at the end of a channel the library says "not acked" of all that was under way
		<-p.closed
		return &refusal{err: p.cause}
	}
}

// abandon takes the outcomes that are there already, and leaves the rest to a goroutine: their room
// is free when their confirms have come, not before.
func (p *pipeline) abandon(ctx context.Context, sent []pending, failed func(k int, err error)) {
	var rest []pending
	for k := range sent {
		select {
		case <-sent[k].confirm.Done():
			if r := p.outcome(&sent[k]); r != nil {
				failed(k, r)
			}
		default:
			rest = append(rest, sent[k])
			failed(k, unconfirmed(ctx))
		}
	}
	if len(rest) > 0 {
		go p.release(rest)
	}
}

func (p *pipeline) release(sent []pending) {
	for k := range sent {
		<-sent[k].confirm.Done()
		_ = p.outcome(&sent[k]) // for its room; nobody asks any more
	}
}

// wasReturned says whether x came back. The broker sends a return before the confirm, and the
// library queues it before it completes the confirm. So the return is here now or never. (A
// collecting goroutine would be late: in a trial it missed up to a third of the returns.)
func (p *pipeline) wasReturned(x *pending) bool {
	if len(p.returns) == 0 && !p.some.Load() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		select {
		case r, ok := <-p.returns:
			if ok {
				p.returned[route{r.Exchange, r.RoutingKey, r.MessageId}]++
				continue
			}
		default:
		}
		break
	}
	name := x.route
	n := p.returned[name]
	if n == 1 {
		delete(p.returned, name)
	} else if n > 1 {
		p.returned[name] = n - 1
	}
	p.some.Store(len(p.returned) > 0)
	return n > 0
}
