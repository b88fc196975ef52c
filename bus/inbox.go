package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/condition"
)

// inbox receives a bus's replies: one topic and one group, subscribed to on first use. The zero
// value is ready.
type inbox struct {
	mu      sync.Mutex
	opening *opening
	waiting map[string]chan<- *Message // by the request's id
	closed  bool

	late atomic.Uint64
}

// opening is one try to subscribe, shared by all requests that meanwhile need the inbox. If it
// fails, the next request makes another.
type opening struct {
	name   string
	cancel context.CancelFunc
	ready  chan struct{} // closed when source or err is set
	source Source
	err    error
	over   chan struct{} // closed when nothing runs any more
}

// The inbox's bounds: replies are handed on at once, so these only size the driver's read-ahead.
const (
	inboxInFlight = 1024
	inboxBytes    = 16 << 20
)

// open returns the inbox once it is subscribed to. The end of the first caller's ctx does not end
// the subscribing.
func (in *inbox) open(ctx context.Context, b *Bus) (*opening, error) {
	in.mu.Lock()
	if in.closed {
		in.mu.Unlock()
		return nil, ErrClosed
	}
	o := in.opening
	if o == nil {
		o = &opening{name: b.options.inbox, ready: make(chan struct{}), over: make(chan struct{})}
		if o.name == "" {
			o.name = inboxPrefix + NewID()
		}
		var running context.Context
		running, o.cancel = context.WithCancel(context.Background())
		in.opening = o
		go in.run(running, o, b)
	}
	in.mu.Unlock()
	select {
	case <-o.ready:
		return o, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// run subscribes, and hands replies on until the inbox is closed.
func (in *inbox) run(ctx context.Context, o *opening, b *Bus) {
	defer close(o.over)
	conditions := condition.NewSet(b.options.logger.With("topic", o.name))
	defer conditions.Close()
	if o.source, o.err = subscribeInbox(ctx, o.name, b, conditions); o.err != nil {
		in.mu.Lock()
		in.opening = nil
		if in.closed {
			o.err = ErrClosed
		}
		in.mu.Unlock()
		o.cancel()
		close(o.ready)
		return
	}
	close(o.ready)
	batch := make([]Delivery, 256)
	var tokens []Token
	for again := (backoff.Backoff{}); ; {
		n, err := o.source.Receive(ctx, batch, inboxBytes)
		if n > 0 {
			tokens = tokens[:0]
			for i := range batch[:n] {
				in.deliver(batch[i].Message)
				tokens = append(tokens, batch[i].Token)
			}
			clear(batch[:n])
			settleReplies(ctx, o.source, tokens, b)
		}
		switch {
		case err == nil:
			again = backoff.Backoff{}
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrClosed):
			b.options.logger.Error("the driver has closed the inbox for replies; the next request opens another", "topic", o.name, "err", err)
			in.lose(ctx, o)
			return
		default:
			b.options.logger.Warn("receiving replies failed; trying again", "topic", o.name, "err", err)
			again.Wait(ctx)
		}
	}
}

// lose makes the next request open another inbox, and ends the requests that wait for replies in
// this one.
func (in *inbox) lose(ctx context.Context, o *opening) {
	_ = o.source.Close(ctx) // it is closed already
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.opening == o && !in.closed {
		in.opening = nil
	}
	for id, reply := range in.waiting {
		close(reply)
		delete(in.waiting, id)
	}
}

func subscribeInbox(ctx context.Context, name string, b *Bus, conditions *condition.Set) (Source, error) {
	if err := checkName("inbox", name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultRequestTimeout)
	defer cancel()
	// From the beginning: replies can come before a broker has given this member its lanes.
	s := Subscription{Topic: name, Group: name, Start: Earliest, InFlight: inboxInFlight, Bytes: inboxBytes}
	for again := (backoff.Backoff{}); ; {
		source, err := b.driver.Subscribe(ctx, s, inboxObserver{conditions})
		if err == nil {
			return source, nil
		}
		if ctx.Err() != nil || !IsRetryable(err) {
			return nil, err
		}
		again.Wait(ctx)
	}
}

// settleReplies settles, however often it takes: unsettled replies would fill the driver's bounds.
func settleReplies(ctx context.Context, s Source, tokens []Token, b *Bus) {
	for again := (backoff.Backoff{}); ; {
		err := s.Settle(ctx, tokens)
		if err == nil || errors.Is(err, ErrStale) || errors.Is(err, ErrClosed) || ctx.Err() != nil {
			return
		}
		b.options.logger.Warn("settling replies failed; trying again", "err", err)
		again.Wait(ctx)
	}
}

// expect registers a request, before it is published: its reply goes to o.
func (in *inbox) expect(o *opening, id string) (chan *Message, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.opening != o { // lost since
		return nil, errInboxLost
	}
	if _, ok := in.waiting[id]; ok {
		return nil, fmt.Errorf("%w: ID is %q: a request with this id is under way", ErrInvalid, id)
	}
	if in.waiting == nil {
		in.waiting = map[string]chan<- *Message{}
	}
	reply := make(chan *Message, 1) // so that the sender does not wait for a caller that has left
	in.waiting[id] = reply
	return reply, nil
}

// forget removes a registration, unless the next request with the id has replaced it.
func (in *inbox) forget(id string, reply chan<- *Message) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.waiting[id] == reply {
		delete(in.waiting, id)
	}
}

func (in *inbox) deliver(m *Message) {
	id := m.Headers.Get(HeaderCausationID)
	in.mu.Lock()
	defer in.mu.Unlock()
	reply := in.waiting[id]
	if reply == nil {
		in.late.Add(1)
		return
	}
	delete(in.waiting, id)
	reply <- m // it has room; under the lock, so that a caller who gives up finds it or is late
}

// close leaves the inbox, within ctx.
func (in *inbox) close(ctx context.Context) {
	in.mu.Lock()
	in.closed = true
	o := in.opening
	in.mu.Unlock()
	if o == nil {
		return
	}
	o.cancel()
	select {
	case <-o.over:
	case <-ctx.Done():
		return // the driver's Close ends the rest
	}
	if o.source != nil {
		_ = o.source.Close(ctx) // unsettled replies are of no use to anybody
	}
}

// inboxObserver is the observer of a source that finishes messages as soon as it receives them. The
// log has its conditions.
type inboxObserver struct{ conditions *condition.Set }

func (inboxObserver) Assigned([]Lane)                  {}
func (inboxObserver) Revoking(context.Context, []Lane) {}
func (inboxObserver) Lost([]Lane, error)               {}

// Condition implements driver.ConditionObserver.
func (o inboxObserver) Condition(what string, err error) { o.conditions.Note(what, err) }
