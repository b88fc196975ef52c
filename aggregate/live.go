package aggregate

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
)

// live holds the aggregates that have commands, and those whose state is kept.
type live[S, E any] struct {
	mu   sync.Mutex
	byID map[string]*aggregate[S, E]
	idle list.List // of *aggregate: those that are kept, the longest unused first
}

// aggregate is one of them. live.mu guards queue, running and idle; the rest belongs to the
// goroutine that runs it.
type aggregate[S, E any] struct {
	id      string
	queue   []*command[S, E]
	running bool
	idle    *list.Element // nil: it is running

	state  *state[S] // nil: to be loaded
	behind bool      // the stream is known to go on, or somebody must know whether it does
}

// command is one call.
type command[S, E any] struct {
	ctx       context.Context //nolint:containedctx // of the call: its events get that context's headers
	at        int64           // anyVersion, or the version that it expects
	decisions []Decision[S, E]
	tries     int // appends that were conflicts

	events  []any // of the last try, as messages
	refusal error // of the last try; a *panicked if a decision panicked

	done   chan struct{}
	result eventstore.Appended
	err    error
}

const anyVersion = -1

// callTimeout bounds calls of the store for several callers together.
const callTimeout = 30 * time.Second

// panicked is the refusal of a decision that panicked.
type panicked struct{ text string }

func (p *panicked) Error() string { return p.text }

func (r *Repository[S, E]) do(ctx context.Context, id string, at int64, decisions []Decision[S, E]) (eventstore.Appended, error) {
	if r.invalid != nil {
		return eventstore.Appended{}, r.invalid
	}
	if err := ctx.Err(); err != nil {
		return eventstore.Appended{}, err
	}
	c := &command[S, E]{ctx: ctx, at: at, decisions: decisions, done: make(chan struct{})}
	if r.tx != nil {
		r.doInTx(c, id)
	} else {
		r.enqueue(c, id)
		select {
		case <-c.done:
		case <-ctx.Done():
			return eventstore.Appended{}, fmt.Errorf("aggregate: %s: the call ended before the command: it may still be carried out: %w", r.kind.Stream(id), ctx.Err())
		}
	}
	if p, ok := c.err.(*panicked); ok { //nolint:errorlint // made in decide, never wrapped
		panic(p.text)
	}
	return c.result, c.err
}

// doInTx executes a command in the caller's transaction.
func (r *Repository[S, E]) doInTx(c *command[S, E], id string) {
	s, err := r.load(c.ctx, id)
	switch {
	case err != nil:
		c.err = err
		return
	case c.at != anyVersion && c.at != s.version:
		c.err = r.conflict(id, c.at, s.version)
		return
	}
	var pending []E
	r.decide(c, &s, &pending)
	switch {
	case c.refusal != nil:
		c.err = c.refusal
	case len(c.events) == 0:
		c.result.Version = s.version
	case s.closed: // the append could only say that there is a conflict
		c.err = fmt.Errorf("aggregate: stream %q: %w", r.kind.Stream(id), eventstore.ErrClosed)
	default:
		c.result.Version, c.err = r.store.In(r.tx).Append(c.ctx, r.kind.Stream(id), eventstore.At(s.version), c.events...)
	}
}

func (r *Repository[S, E]) conflict(id string, expected, actual int64) error {
	return &eventstore.Conflict{Stream: r.kind.Stream(id), Expected: eventstore.At(expected), Actual: actual}
}

// enqueue gives a command to the goroutine of its aggregate.
func (r *Repository[S, E]) enqueue(c *command[S, E], id string) {
	l := r.live
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.byID[id]
	if a == nil {
		a = &aggregate[S, E]{id: id}
		l.byID[id] = a
	}
	a.queue = append(a.queue, c)
	if a.running {
		return
	}
	a.running = true
	if a.idle != nil {
		l.idle.Remove(a.idle)
		a.idle = nil
	}
	go r.run(a)
}

// run executes the commands of an aggregate until there are none.
func (r *Repository[S, E]) run(a *aggregate[S, E]) {
	for {
		batch := r.take(a)
		if batch == nil {
			return
		}
		r.execute(a, batch)
	}
}

// take takes the commands that are decided together: one that expects a version is the first of its
// batch. Without commands the aggregate rests, and the longest unused ones are forgotten.
func (r *Repository[S, E]) take(a *aggregate[S, E]) (batch []*command[S, E]) {
	l := r.live
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < len(a.queue) && (n == 0 || a.queue[n].at == anyVersion) {
		n++
	}
	if n > 0 {
		batch, a.queue = a.queue[:n:n], a.queue[n:]
		return batch
	}
	a.queue, a.running, a.idle = nil, false, l.idle.PushBack(a)
	for l.idle.Len() > r.kind.cached {
		longest := l.idle.Remove(l.idle.Front()).(*aggregate[S, E])
		delete(l.byID, longest.id)
	}
	return nil
}

// again puts commands back, before all others.
func (r *Repository[S, E]) again(a *aggregate[S, E], commands []*command[S, E]) {
	r.live.mu.Lock()
	defer r.live.mu.Unlock()
	a.queue = append(commands[:len(commands):len(commands)], a.queue...)
}

// execute decides commands, and appends their events together.
func (r *Repository[S, E]) execute(a *aggregate[S, E], batch []*command[S, E]) {
	ctx, cancel := batch[0].ctx, func() {}
	if len(batch) > 1 { // it ends with none of the calls, and has no headers of one for the others
		ctx, cancel = context.WithTimeout(context.Background(), callTimeout)
	}
	defer cancel()
	fresh, err := r.refresh(ctx, a, batch[0])
	if err != nil {
		a.state = nil
		finish(batch, err)
		return
	}
	r.commit(ctx, a, r.propose(a, batch, fresh))
}

// refresh has the state loaded, or read on if it may be behind. fresh: it was, so the state is one
// that the stream had since the commands came.
func (r *Repository[S, E]) refresh(ctx context.Context, a *aggregate[S, E], first *command[S, E]) (fresh bool, err error) {
	if a.state != nil {
		if !a.behind && (first.at == anyVersion || first.at == a.state.version) {
			return false, nil
		}
		err = r.readOn(ctx, a.id, a.state)
	}
	if a.state == nil || errors.Is(err, eventstore.ErrTruncated) { // a snapshot may be ahead of what was removed
		var s state[S]
		s, err = r.load(ctx, a.id)
		a.state = &s
	}
	a.behind = false
	return true, err
}

// proposal has the decisions on one state, and the events that they would append.
type proposal[S, E any] struct {
	decided []*command[S, E]
	events  []any
	fresh   bool // see refresh
	// pending are the last events: they are applied when they are appended, or when something is to
	// be decided on them.
	pending []E
	// applied: the state has been changed by events that are not appended yet; spoiled: by some
	// that never will be.
	applied, spoiled bool
}

// propose decides commands one after the other. Those that must be decided without the others are
// put back.
func (r *Repository[S, E]) propose(a *aggregate[S, E], batch []*command[S, E], fresh bool) *proposal[S, E] {
	s, p := a.state, &proposal[S, E]{fresh: fresh}
	for i, c := range batch {
		if err := c.ctx.Err(); err != nil {
			finish(batch[i:i+1], err)
			continue
		}
		if c.at != anyVersion && c.at != s.version {
			finish(batch[i:i+1], r.conflict(a.id, c.at, s.version))
			continue
		}
		p.applied = p.applied || len(p.pending) > 0
		r.apply(s, &p.pending)
		changed := r.decide(c, s, &p.pending)
		if len(p.decided) > 0 && len(p.events)+len(c.events) > r.store.MaxEvents() { // too much for one append
			p.pending, p.spoiled = nil, changed
			r.again(a, batch[i:])
			break
		}
		p.decided, p.events = append(p.decided, c), append(p.events, c.events...)
		c.result = eventstore.Appended{Version: s.version + int64(len(p.events))}
		if c.refusal == nil {
			p.applied = p.applied || changed
			continue
		}
		if p.pending = nil; changed { // the others are decided on what is stored
			p.spoiled = true
			r.again(a, batch[i+1:])
			break
		}
	}
	return p
}

// apply has the state changed by pending events.
func (r *Repository[S, E]) apply(s *state[S], pending *[]E) {
	for _, e := range *pending {
		r.kind.apply(&s.value, e)
	}
	*pending = nil
}

// decide makes a command's decisions, and encodes its events or notes its refusal. Its last events
// are pending; changed tells that the state may have been changed by others.
func (r *Repository[S, E]) decide(c *command[S, E], s *state[S], pending *[]E) (changed bool) {
	c.events, c.refusal = nil, nil
	defer func() {
		if p := recover(); p != nil { // the decision may have changed the state, although it must not
			changed, c.refusal = true, &panicked{fmt.Sprintf("%v\n%s", p, debug.Stack())}
		}
	}()
	var all []any
	for _, decide := range c.decisions {
		changed = changed || len(*pending) > 0
		r.apply(s, pending)
		events, err := decide(s.value)
		if err != nil {
			c.refusal = err
			return changed
		}
		for _, e := range events {
			all = append(all, e)
		}
		*pending = events
	}
	msgs, err := r.store.Bus().Encode(c.ctx, all)
	if err != nil {
		c.refusal = fmt.Errorf("aggregate: %s: %w", r.kind.name, err)
		return changed
	}
	for _, m := range msgs {
		c.events = append(c.events, m)
	}
	return changed
}

// commit appends a proposal, and tells the callers.
//
// A refusal counts only if the state on which it was made was the stream's since the call began:
// the state was read since, or what else was decided on it has been appended to it.
func (r *Repository[S, E]) commit(ctx context.Context, a *aggregate[S, E], p *proposal[S, E]) {
	s := a.state
	if p.spoiled {
		a.state = nil
	}
	if len(p.events) == 0 {
		if p.fresh {
			finish(p.decided, nil)
			return
		}
		a.behind = true
		r.again(a, p.decided)
		return
	}
	done, err := r.store.Append(ctx, r.kind.Stream(a.id), eventstore.At(s.version), p.events...)
	if err != nil {
		r.failed(a, p, err)
		return
	}
	r.apply(s, &p.pending)
	s.version, s.eventID = done.Version, p.events[len(p.events)-1].(*bus.Message).ID
	for _, c := range p.decided {
		if len(c.events) > 0 {
			c.result.Position, c.result.Repeated = done.Position, done.Repeated
		}
	}
	finish(p.decided, nil)
	if !p.spoiled {
		r.save(a.id, s)
	}
}

// failed deals with a proposal that was not appended. Its commands are decided again if they can
// be.
func (r *Repository[S, E]) failed(a *aggregate[S, E], p *proposal[S, E], err error) {
	conflict, isConflict := errors.AsType[*eventstore.Conflict](err)
	if a.behind = true; p.applied || !isConflict {
		a.state = nil
	}
	var retried []*command[S, E]
	for i, c := range p.decided {
		this := p.decided[i : i+1]
		switch {
		case isConflict && c.at != anyVersion:
			finish(this, r.conflict(a.id, c.at, conflict.Actual))
			continue
		case len(c.events) == 0: // decided on the others' events, perhaps
		case !isConflict:
			finish(this, err)
			continue
		default:
			if c.tries++; c.tries >= r.kind.tries {
				finish(this, err)
				continue
			}
		}
		retried = append(retried, c)
	}
	r.again(a, retried)
}

// finish tells callers of their result: an error, or what their command has come to.
func finish[S, E any](commands []*command[S, E], err error) {
	for _, c := range commands {
		c.err = err
		if err == nil {
			c.err = c.refusal
		}
		if c.err != nil {
			c.result = eventstore.Appended{}
		}
		close(c.done)
	}
}
