package amqplink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/internal/budget"
)

// Bounds of the messages that a [Pipeline] has under way. When a queue does not confirm, its
// channel at the broker soon takes no more. With 200 to 400 more messages before that channel, the
// broker reads no more from the whole connection. So a pipeline has fewer under way.
const (
	PipelineMessages = 224
	pipelineBytes    = 8 << 20
)

// Pipeline is a channel in confirm mode. A caller sends all its messages, within the pipeline's
// budget, and then waits for the confirms. A pipeline serves one session; another replaces it after
// the broker has closed its channel.
type Pipeline struct {
	ch     *amqp.Channel
	budget *budget.Budget
	closed chan struct{} // closed when the channel has ended
	cause  error         // why, set before

	mu       sync.Mutex
	returns  chan amqp.Return
	returned map[route]int // returned and not yet asked for
	some     atomic.Bool   // returned is not empty
}

// NewPipeline opens a pipeline.
func (s *Session) NewPipeline() (*Pipeline, error) {
	ch, err := s.Conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := ch.Confirm(false); err != nil {
		return nil, err
	}
	p := &Pipeline{
		ch:     ch,
		budget: budget.New(PipelineMessages, pipelineBytes),
		closed: make(chan struct{}),
		// Room for a return of everything under way, so that the reader of the connection never
		// waits here.
		returns:  ch.NotifyReturn(make(chan amqp.Return, PipelineMessages)),
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

// Parcel is one message on its way. Its Headers are recycled when it was sent.
type Parcel struct {
	Exchange, Key string
	amqp.Publishing
}

func (x *Parcel) size() int { return len(x.Body) + 512 }

// route holds the fields by which the broker's return identifies a parcel.
type route struct{ exchange, key, id string }

// RefusedError is why a parcel is not known to be stored.
type RefusedError struct {
	Err error
	// Definite: it was not stored.
	Definite bool
	// Final: it cannot be published later either.
	Final bool
	// Nack: the broker refused it, because a queue is full or failed.
	Nack bool
}

// Error implements error.
func (r *RefusedError) Error() string { return r.Err.Error() }

// Unwrap returns the reason.
func (r *RefusedError) Unwrap() error { return r.Err }

// Reasons of a [RefusedError].
var (
	ErrNack     = errors.New("the broker refused the message")
	ErrReturned = errors.New("the broker has no queue for the message")
	ErrNotSent  = errors.New("not sent, because an earlier message of the call failed")
)

// Closed reports whether the channel has ended.
func (p *Pipeline) Closed() bool { return p.ch.IsClosed() }

// Idle reports whether nothing is under way.
func (p *Pipeline) Idle() bool { return p.budget.Idle() }

// Close closes the channel, and waits for the broker's answer.
func (p *Pipeline) Close() error { return p.ch.Close() }

// notSent is the refusal of a parcel for which there was no room in time.
func (p *Pipeline) notSent(ctx context.Context) *RefusedError {
	select {
	case <-p.closed:
		return &RefusedError{Err: p.cause, Definite: true}
	default:
	}
	if ctx.Err() != nil {
		return &RefusedError{Err: fmt.Errorf("no room in the pipeline: %w", context.Cause(ctx)), Definite: true}
	}
	return &RefusedError{Err: ErrNotSent, Definite: true}
}

// wait waits for x's confirm.
func (p *Pipeline) wait(ctx context.Context, x *pending) *RefusedError {
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

func unconfirmed(ctx context.Context) *RefusedError {
	return &RefusedError{Err: fmt.Errorf("waiting for the broker's confirm: %w", context.Cause(ctx))}
}

// outcome reads a confirm that has come, and gives back its room.
func (p *Pipeline) outcome(x *pending) *RefusedError {
	returned := p.wasReturned(x)
	p.budget.Give(x.size)
	switch {
	case returned:
		return &RefusedError{Err: ErrReturned, Definite: true}
	case x.confirm.Acked():
		return nil
	case !p.ch.IsClosed():
		return &RefusedError{Err: ErrNack, Nack: true}
	default: // at the end of a channel the library says "not acked" of all that was under way
		<-p.closed
		return &RefusedError{Err: p.cause}
	}
}

func (p *Pipeline) release(sent []pending) {
	for k := range sent {
		<-sent[k].confirm.Done()
		_ = p.outcome(&sent[k]) // for its room; nobody asks any more
	}
}

// wasReturned says whether x came back. The broker sends a return before the confirm, and the
// library queues it before it completes the confirm. So the return is here now or never. (A
// collecting goroutine would be late: in a trial it missed up to a third of the returns.)
func (p *Pipeline) wasReturned(x *pending) bool {
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
