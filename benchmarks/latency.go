package main

import (
	"context"
	"slices"
	"sync/atomic"
	"time"
)

// latencyRates are how many messages a second are sent: about a tenth of what Watermill can do.
var latencyRates = map[string]int{"memory": 8000, "kafka": 200, "rabbitmq": 200, "postgres": 200, "mysql": 200, "sqlite": 100}

// latencySenders share the sending, so that a slow call does not delay the next message.
const latencySenders = 64

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
		began, u := time.Now(), began()
		start.Store(&began)
		errs := make(chan error, latencySenders)
		for i := range latencySenders {
			go func() {
				for number := i; number < c.n; number += latencySenders {
					time.Sleep(due(number) - time.Since(began))
					if err := c.side.publish(ctx, c.load.one(number)); err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		var err error
		for range latencySenders {
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
