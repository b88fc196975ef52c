package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// kind says which action a path measures.
type kind int

const (
	publishing kind = iota
	consuming
	through // publishing and consuming at once
	latency
)

// path is one line of the table.
type path struct {
	name             string
	broker           string
	kind             kind
	callers, perCall int
	work             time.Duration
}

func allPaths() []path {
	paths := []path{
		{name: "memory", broker: "memory", kind: through, callers: 1, perCall: 1},
		{name: "memory/latency", broker: "memory", kind: latency},
	}
	for _, broker := range brokers[1:] {
		publish := func(name string, callers, perCall int) {
			paths = append(paths, path{name: broker + "/publish/" + name, broker: broker, callers: callers, perCall: perCall})
		}
		publish("serial", 1, 1)
		publish("16", 16, 1)
		publish("64", 64, 1)
		if broker == "postgres" {
			publish("512", 512, 1)
		}
		publish("batch100", 1, 100)
		publish("batch1000", 1, 1000)
		paths = append(paths,
			path{name: broker + "/consume", broker: broker, kind: consuming},
			path{name: broker + "/consume/1ms", broker: broker, kind: consuming, work: time.Millisecond},
			path{name: broker + "/latency", broker: broker, kind: latency})
	}
	return append(paths, path{name: "outbox/relay", broker: "outbox", kind: consuming})
}

// Counts of messages: of the first trial, and of any round.
const (
	firstCount = 2000
	mostCount  = 4_000_000
)

// measure runs the libraries in turn, round by round, each round beginning with another. A library
// that follows the trials, or one that leaves the broker much to tidy, is worse off. A library that
// fails is left out, and the others go on.
func (p path) measure(ctx context.Context) (map[string][]result, error) {
	results := map[string][]result{}
	counts := map[string]int{}
	var failures []error
	for round := range *rounds + 1 {
		for i := range libraries {
			lib := libraries[(round+i)%len(libraries)]
			open := lib.on[p.broker]
			if open == nil || round > 0 && counts[lib.name] == 0 {
				continue
			}
			if err := p.part(ctx, lib.name, open, round, counts, results); err != nil {
				failures = append(failures, fmt.Errorf("%s: %s: %w", p.name, lib.name, err))
				delete(counts, lib.name)
				delete(results, lib.name)
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
		}
	}
	fmt.Fprint(os.Stderr, "\r\033[K")
	return results, errors.Join(failures...)
}

// part is one library's part of a round. Round 0 finds its count of messages.
func (p path) part(ctx context.Context, name string, open opener, round int, counts map[string]int, results map[string][]result) error {
	if round == 0 {
		n, err := p.calibrate(ctx, name, open)
		counts[name] = n
		return err
	}
	p.progress("round %d of %d: %s, %d messages", round, *rounds, name, counts[name])
	r, err := p.round(ctx, open, counts[name])
	results[name] = append(results[name], r)
	return err
}

func (p path) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "\r\033[K%-26s %s", p.name, fmt.Sprintf(format, args...))
}

// calibrate finds out how many messages make a round last long enough. A short trial says too
// little of a quick library.
func (p path) calibrate(ctx context.Context, name string, open opener) (n int, err error) {
	for n = firstCount; ; {
		p.progress("trial: %s, %d messages", name, n)
		r, err := p.round(ctx, open, n)
		if err != nil {
			return 0, err
		}
		next := min(int(r.rate*least.Seconds()), mostCount) / 1000 * 1000
		if next <= 2*n || p.kind == latency {
			return max(next, firstCount), nil
		}
		n = min(next, 16*n)
	}
}

// round measures one library once, at a place of its own.
func (p path) round(ctx context.Context, open opener, n int) (r result, err error) {
	return p.roundOf(ctx, open, load{n: n, callers: p.callers, perCall: p.perCall, size: *size, keys: defaultKeys}, 0)
}

// roundOf is round with a load and a number of lanes; 0 is the default.
func (p path) roundOf(ctx context.Context, open opener, l load, lanes int) (r result, err error) {
	n := l.n
	settle()
	at, err := newPlace(ctx, p.broker, lanes)
	if err != nil {
		return r, err
	}
	defer func() {
		if cerr := at.remove(ctx); err == nil {
			err = cerr
		}
	}()
	s, err := open(ctx, at)
	if err != nil {
		return r, err
	}
	defer func() {
		if cerr := s.close(); err == nil {
			err = cerr
		}
	}()
	c := course{path: p, side: s, n: n, ledger: newLedger(n + 1), load: l}
	switch p.kind {
	case through:
		r, err = c.through(ctx)
	case latency:
		r, err = c.latency(ctx)
	case consuming:
		r, err = c.consume(ctx)
	default:
		r, err = c.publish(ctx)
	}
	if err == nil {
		err = c.ledger.check()
	}
	return r, err
}

// course is one round under way. Its last message, the number n, goes ahead of the others: it
// creates the things that a first message creates.
type course struct {
	path
	side   side
	n      int
	ledger *ledger
	load   load
}

// group runs the group until stop is called, which returns its error.
func (c *course) group(ctx context.Context) (groupCtx context.Context, stop func() error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	var failure error
	running.Go(func() {
		if err := c.side.consume(ctx, c.work, c.ledger); err != nil && ctx.Err() == nil {
			failure = err
			cancel(err)
		}
	})
	return ctx, func() error {
		cancel(nil)
		running.Wait()
		return failure
	}
}

// during runs f while the group runs.
func (c *course) during(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, stop := c.group(ctx)
	var err error
	if s, ok := c.side.(starter); ok {
		select {
		case <-s.running():
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err == nil {
		err = f(ctx)
	}
	if serr := stop(); err == nil {
		err = serr
	}
	return err
}

// ahead publishes the message that goes ahead.
func (c *course) ahead(ctx context.Context) error { return c.side.publish(ctx, c.load.one(c.n)) }

func (c *course) publish(ctx context.Context) (r result, err error) {
	if err := c.ahead(ctx); err != nil {
		return r, err
	}
	u := began()
	if err := c.side.publish(ctx, c.load); err != nil {
		return r, err
	}
	r = u.ended(c.n)
	return r, c.during(ctx, func(ctx context.Context) error { return c.ledger.wait(ctx, c.n+1) })
}

func (c *course) consume(ctx context.Context) (r result, err error) {
	if err := c.ahead(ctx); err != nil {
		return r, err
	}
	fill := c.load
	fill.callers, fill.perCall = 4, max(1, min(500, 128<<10/fill.size))
	if err := c.side.publish(ctx, fill); err != nil {
		return r, err
	}
	// Joining a group is not consuming, and lanes come one by one: the measurement begins with the
	// tenth part. (On RabbitMQ, the first group moves the messages kept for it, before.)
	u, head := began(), c.n/10
	var first sync.Once
	c.ledger.arrived = func(int) {
		if c.ledger.count.Load() >= int64(head) {
			first.Do(u.begin)
		}
	}
	err = c.during(ctx, func(ctx context.Context) error { return c.ledger.wait(ctx, c.n+1) })
	return u.ended(c.n - head), err
}

func (c *course) through(ctx context.Context) (r result, err error) {
	err = c.during(ctx, func(ctx context.Context) error {
		if err := c.side.publish(ctx, c.load.one(c.n)); err != nil {
			return err
		}
		if err := c.ledger.wait(ctx, 1); err != nil {
			return err
		}
		u := began()
		if err := c.side.publish(ctx, c.load); err != nil {
			return err
		}
		if err := c.ledger.wait(ctx, c.n+1); err != nil {
			return err
		}
		r = u.ended(c.n)
		return nil
	})
	return r, err
}
