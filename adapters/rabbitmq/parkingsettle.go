package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

func (p *parking) ackLocked(tag uint64) {
	if !p.ended {
		_ = p.ch.Ack(tag, false) // an error says that the channel has ended, which its reader sees
		p.acks++
		p.open--
	}
}

// giveBackLocked has a record delivered again.
func (p *parking) giveBackLocked(tag uint64) {
	if !p.ended {
		_ = p.ch.Nack(tag, false, true) // as above
		p.open--
	}
}

// finish returns when the broker has delivered all settled records, and been told of them, if it
// does so in time.
func (p *parking) finish() {
	late := time.NewTimer(p.bounds.marker)
	defer late.Stop()
	for {
		p.mu.Lock()
		owed := p.owed
		p.mu.Unlock()
		if owed == 0 {
			return
		}
		select {
		case <-p.quiet:
		case <-p.closed:
			return
		case <-late.C:
			return
		}
	}
}

// commitNow returns when the queue has the acks of all settled messages. A message that was settled
// while its record was on the way is acked when the record comes; commitNow waits for the record as
// long as finish.
func (p *parking) commitNow(ctx context.Context) error {
	late := time.Now().Add(p.bounds.marker)
	for n := 0; ; n++ {
		p.mu.Lock()
		coming, unsure, ended := p.owed > 0, p.acks > p.applied, p.ended
		p.mu.Unlock()
		switch {
		case ended && (coming || unsure):
			return bus.ErrStale
		case coming && time.Now().Before(late):
			if !backoff.Sleep(ctx, commitInterval) {
				return context.Cause(ctx)
			}
		case unsure:
			if err := p.askWithin(ctx); !errors.Is(err, errNoAnswer) {
				return err
			}
			if !backoff.Sleep(ctx, backoff.Pause(n+1)) {
				return fmt.Errorf("%w: %w", context.Cause(ctx), errNoAnswer)
			}
		default:
			return nil
		}
	}
}

// askWithin is ask, which itself heeds no context.
func (p *parking) askWithin(ctx context.Context) error {
	answered := make(chan error, 1)
	go func() { answered <- p.ask() }()
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ask has the queue answer a question, which it does after the acks that were sent before.
func (p *parking) ask() error {
	p.rpc.Lock()
	defer p.rpc.Unlock()
	p.mu.Lock()
	sent, has, ended := p.acks, p.applied, p.ended
	p.mu.Unlock()
	switch {
	case ended:
		return bus.ErrStale
	case has == sent:
		return nil
	}
	q, err := p.ch.QueueDeclarePassive(p.queue, true, false, false, false, nil)
	switch {
	case err != nil:
		return err
	case q.Consumers == 0: // this one is
		return errNoAnswer
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied = max(p.applied, sent)
	return nil
}

// end makes all tokens stale. Nothing is sent afterwards.
func (p *parking) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.cancel()
	if !p.probing.sent.IsZero() {
		p.of.probed.Store(false) // the next ownership asks again
	}
	for _, e := range p.entries {
		if e.wanted != nil {
			e.wanted.missing()
			e.wanted = nil
		}
	}
}

// close gives back all that is held.
func (p *parking) close() {
	p.finish()
	p.end()
	p.rpc.Lock()
	if p.acks > 0 {
		settleDown(p.ch, p.queue)
	}
	p.rpc.Unlock()
	_ = p.ch.Close() // if it fails, the session has ended
	p.workers.Wait()
}
