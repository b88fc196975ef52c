package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
)

// ending is called when a handler's call has ended: with nil when its outputs are published, and then failed, if it is
// not nil, names the messages of a batch that failed; with the reason otherwise.
type ending func(ctx context.Context, err error, failed func(id string) bool) error

var errDiscarded = errors.New("the handler failed")

// OnSuccess has f called when the handler has succeeded and what it emitted is published, before the message is
// settled: the place to remember that it was handled. Calls go in the order of registration. If f fails, the message
// counts as failed, although its outputs are published. In a batch handler f is called when the outputs of the messages
// that succeeded are published, and its failure is theirs.
//
// A handler that is called without a router, by package bustest, has no end: there f is called at once. It is an error outside of a handler, and after the
// handler has returned.
func OnSuccess(ctx context.Context, f func(ctx context.Context) error) error {
	return onEnding(ctx, func(ctx context.Context, err error, _ func(string) bool) error {
		if err != nil {
			return nil //nolint:nilerr // the failure is known, and f is not meant for it
		}
		return f(ctx)
	})
}

// OnEnd is OnSuccess for middleware that has to know the end of every call: f is called after a failure as well.
// succeeded tells whether a message of the call was handled, with all its middleware, and its outputs are published.
// f's error counts only if something has succeeded.
func OnEnd(ctx context.Context, f func(ctx context.Context, succeeded func(*Message) bool) error) error {
	return onEnding(ctx, func(ctx context.Context, err error, failed func(string) bool) error {
		return f(ctx, func(m *Message) bool { return err == nil && (failed == nil || !failed(m.ID)) })
	})
}

func onEnding(ctx context.Context, f ending) error {
	h := handlingFrom(ctx)
	if h == nil {
		return errors.New("on success: this context is not a handler's")
	}
	h = h.root()
	if h.direct {
		return f(ctx, nil, nil)
	}
	p := h.promises()
	defer p.mu.Unlock()
	if p.done {
		return errors.New("on success: the handler has returned already")
	}
	p.endings = append(p.endings, f)
	return nil
}

// conclude tells everybody how the call has ended. The first error is the call's.
func conclude(ctx context.Context, endings []ending, err error, failed func(id string) bool) error {
	var ignored error // the call's, if nothing worse follows; it is a success for the others
	for _, f := range endings {
		e := f.call(ctx, err, failed)
		switch {
		case e == nil || err != nil:
		case IsIgnored(e):
			ignored = fmt.Errorf("after success: %w", e)
		default:
			err = fmt.Errorf("after success: %w", e)
		}
	}
	if err == nil {
		return ignored
	}
	return err
}

// call makes an error of a panic: no handler is around it any more that would.
func (f ending) call(ctx context.Context, err error, failed func(id string) bool) (ferr error) {
	defer func() {
		if p := recover(); p != nil {
			ferr = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f(ctx, err, failed)
}

// Savepoint is for middleware that calls a handler again, or makes something else of its failure: rollback takes back
// what was emitted, and what [OnSuccess] and [OnEnd] were given, since Savepoint was called. In a batch it takes back
// only what was emitted because of these messages. Outside of a handler it does nothing.
func Savepoint(ctx context.Context) (rollback func(of ...*Message)) {
	h := handlingFrom(ctx)
	if h == nil {
		return func(...*Message) {}
	}
	root := h.root() // which has the endings of all
	out, _ := h.promisedSoFar()
	_, endings := root.promisedSoFar()
	return func(of ...*Message) {
		if h.batch {
			h.takeBackOf(out, of)
			return
		}
		h.takeBackOutputs(out)
		if !root.batch {
			_ = conclude(h.Context, root.takeBackEndings(endings), errDiscarded, nil)
		}
	}
}

// root is the whole handler's handling.
func (h *Handling) root() *Handling {
	for h.outer != nil {
		h = h.outer
	}
	return h
}

func (h *Handling) promisedSoFar() (out, endings int) {
	p := h.promised.Load()
	if p == nil {
		return 0, 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.out), len(p.endings)
}

// undo changes what was promised, unless the call is over.
func (h *Handling) undo(change func(p *promises)) {
	p := h.promised.Load()
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.done {
		change(p)
	}
}

func (h *Handling) takeBackOutputs(out int) {
	h.undo(func(p *promises) {
		clear(p.out[out:])
		p.out = p.out[:out]
	})
}

func (h *Handling) takeBackEndings(endings int) (dropped []ending) {
	h.undo(func(p *promises) {
		dropped = append(dropped, p.endings[endings:]...)
		p.endings = p.endings[:endings]
	})
	return dropped
}

func (h *Handling) takeBackOf(out int, of []*Message) {
	h.undo(func(p *promises) {
		kept := p.out[:out]
		for _, e := range p.out[out:] {
			if !isOf(e.cause, of) {
				kept = append(kept, e)
			}
		}
		clear(p.out[len(kept):])
		p.out = kept
	})
}

func isOf(cause string, of []*Message) bool {
	for _, m := range of {
		if m.ID == cause {
			return true
		}
	}
	return false
}
