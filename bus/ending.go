package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
)

// ending is called when a handler's call has ended. err is nil when its outputs are published, else
// the reason. After success, failed names the failed messages of a batch; nil means none.
type ending func(ctx context.Context, err error, failed func(id string) bool) error

var errDiscarded = errors.New("the handler failed")

// OnSuccess registers f to run after the handler has succeeded and its emitted messages are
// published, before the message is settled. Use it to remember that the message was handled. Calls
// run in the order of registration. If f fails, the message counts as failed, although its outputs
// are published. In a batch handler, f runs once the outputs of the successful messages are
// published, and its failure is theirs.
//
// A handler called without a router, by package bustest, has no end: there OnSuccess calls f at
// once. It returns an error outside of a handler, and after the handler has returned.
func OnSuccess(ctx context.Context, f func(ctx context.Context) error) error {
	return onEnding(ctx, func(ctx context.Context, err error, _ func(string) bool) error {
		if err != nil {
			return nil //nolint:nilerr // the failure is known, and f is not meant for it
		}
		return f(ctx)
	})
}

// OnEnd is [OnSuccess] for middleware that must know the end of every call: f also runs after a
// failure. succeeded reports whether a message of the call was handled, with all its middleware,
// and its outputs are published. f's error counts only if a message has succeeded.
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

// conclude tells every ending how the call has ended. The first error is the call's.
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

// call turns a panic into an error: no surrounding handler would do so any more.
func (f ending) call(ctx context.Context, err error, failed func(id string) bool) (ferr error) {
	defer func() {
		if p := recover(); p != nil {
			ferr = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f(ctx, err, failed)
}

// Savepoint is for middleware that calls a handler again or changes the result of its failure.
// rollback drops all that was emitted or registered with [OnSuccess] and [OnEnd] since Savepoint
// was called. In a batch it drops only the messages emitted because of the messages in of. Outside
// of a handler it does nothing.
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
			_ = conclude(h.Context, root.takeBackEndings(endings), errDiscarded, nil) // it returns errDiscarded: the call has failed already
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

// undo changes the promises, unless the call is over.
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
