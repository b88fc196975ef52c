package amqplink

import (
	"context"
	"sync"
)

// MaxPipelines is how many pipelines a [Pipelines] keeps open. Beyond it, the least recently used
// pipeline is closed.
const MaxPipelines = 128

// Pipelines keeps the pipelines of a session, by name. Safe for concurrent use.
type Pipelines struct {
	session *Session

	mu   sync.Mutex
	open map[string]*opened
	uses int // so far
}

// opened is a pipeline that is open, or being opened.
type opened struct {
	*Attempt[*Pipeline]
	users int // publish with it now
	last  int // the number of its last use
}

// NewPipelines returns a set without pipelines.
func NewPipelines(s *Session) *Pipelines { return &Pipelines{session: s, open: map[string]*opened{}} }

// Get returns the pipeline of a name, to be used until done is called. A pipeline that has ended is
// replaced.
func (q *Pipelines) Get(ctx context.Context, name string) (p *Pipeline, done func(), err error) {
	q.mu.Lock()
	o := q.open[name]
	if o == nil || o.Failed() || o.Ended() && o.v.Closed() {
		if o == nil {
			q.tidy()
		}
		o = &opened{Attempt: Start(q.session.NewPipeline)}
		q.open[name] = o
	}
	o.users++
	q.uses++
	o.last = q.uses
	q.mu.Unlock()
	done = func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		o.users--
	}
	if p, err = o.Wait(ctx); err != nil {
		done()
		return nil, nil, err
	}
	return p, done, nil
}

// tidy closes a pipeline if there are many. The caller has mu.
func (q *Pipelines) tidy() {
	if len(q.open) < MaxPipelines {
		return
	}
	oldest := ""
	for name, o := range q.open {
		unused := o.users == 0 && (o.Failed() || o.Ended() && o.v.Idle())
		if unused && (oldest == "" || o.last < q.open[oldest].last) {
			oldest = name
		}
	}
	if o := q.open[oldest]; o != nil {
		delete(q.open, oldest)
		if o.err == nil {
			go o.v.Close()
		}
	}
}
