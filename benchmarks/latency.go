package main

import (
	"context"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

// latencyRates are how many messages a second are sent: about a tenth of what Watermill can do.
var latencyRates = map[string]int{"memory": 8000, "kafka": 200, "rabbitmq": 200, "postgres": 200, "mysql": 200, "sqlite": 100}

// latencySenders share the sending, so that a slow call does not delay the next message. In memory no call is slow.
func latencySenders(broker string) int {
	if broker == "memory" {
		return 1
	}
	return 64
}

// until waits for a time. A sleeper wakes up to a millisecond late, so it looks at the clock itself for the last of it.
func until(at time.Time) {
	time.Sleep(time.Until(at) - 2*time.Millisecond)
	for time.Now().Before(at) {
		runtime.Gosched()
	}
}

// latency sends at a fixed rate, and measures from the time at which a message was to be sent until its handler is called: what
// waits because something before it was slow has waited.
func (c *course) latency(ctx context.Context) (r result, err error) {
	rate := latencyRates[c.broker]
	c.n = min(c.n, max(firstCount/2, int(2*least.Seconds()*float64(rate))))
	c.ledger.n = c.n + 1
	c.load.n = c.n
	took := make([]time.Duration, c.n)
	var start atomic.Pointer[time.Time]
	due := func(number int) time.Duration { return time.Duration(number) * time.Second / time.Duration(rate) }
	c.ledger.arrived = func(number int) {
		if number < c.n {
			took[number] = time.Since(*start.Load()) - due(number)
		}
	}
	err = c.during(ctx, func(ctx context.Context) error {
		if err := c.side.publish(ctx, c.load.one(c.n)); err != nil {
			return err
		}
		if err := c.ledger.wait(ctx, 1); err != nil {
			return err
		}
		u := began()
		began := time.Now()
		start.Store(&began)
		senders := latencySenders(c.broker)
		errs := make(chan error, senders)
		for i := range senders {
			go func() {
				for number := i; number < c.n; number += senders {
					until(began.Add(due(number)))
					if err := c.side.publish(ctx, c.load.one(number)); err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		var err error
		for range senders {
			if e := <-errs; err == nil {
				err = e
			}
		}
		if err == nil {
			err = c.ledger.wait(ctx, c.n+1)
		}
		r = u.ended(c.n)
		return err
	})
	slices.Sort(took)
	at := func(share float64) time.Duration { return took[min(int(share*float64(len(took))), len(took)-1)] }
	r.p50, r.p99, r.p999 = at(0.5), at(0.99), at(0.999)
	return r, err
}
