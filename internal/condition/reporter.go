package condition

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

// Observer is told of conditions: driver.ConditionObserver.
type Observer interface {
	Condition(what string, err error)
}

// Reporter merges what the goroutines of a driver meet: a condition begins when the first of them
// reports it, and ends when the last of them has gone on. Safe for concurrent use.
type Reporter struct {
	observer Observer // nil: nobody wants to know

	mu sync.Mutex
	by map[string]report // by worker
}

type report struct {
	what string
	err  error
}

// NewReporter makes a Reporter. It tells observer, if that is an [Observer].
func NewReporter(observer any) *Reporter {
	r := &Reporter{by: map[string]report{}}
	r.observer, _ = observer.(Observer)
	return r
}

// Report notes the condition that a worker meets, in place of its last report. A nil err says that the worker
// goes on; what does not count then. It does not block.
func (r *Reporter) Report(worker, what string, err error) {
	if r.observer == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before, had := r.by[worker]
	if err != nil {
		r.by[worker] = report{what, err}
		r.observer.Condition(what, err)
	} else {
		delete(r.by, worker)
	}
	if had && (err == nil || before.what != what) {
		r.over(before.what)
	}
}

// over ends a condition, unless another worker still meets it: its error counts then.
func (r *Reporter) over(what string) {
	for _, other := range r.by {
		if other.what == what {
			r.observer.Condition(what, other.err)
			return
		}
	}
	r.observer.Condition(what, nil)
}

// Unreachable says whether a call failed because the other side cannot be reached, or does not
// answer in time.
func Unreachable(err error) bool {
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded)
}
