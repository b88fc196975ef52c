package main

import (
	"context"
	"slices"
	"sync/atomic"
	"time"
)

// latencyRates are how many messages a second are sent: about a tenth of what Watermill can do.
var latencyRates = map[string]int{"memory": 8000, "kafka": 200, "rabbitmq": 200, "postgres": 200, "mysql": 200, "sqlite": 100}

// latencySenders share the sending, so that a slow call does not delay the next message. In memory
// no call is slow.
func latencySenders(broker string) int {
	if broker == "memory" {
		return 1
	}
	return 64
}

// pace sends each number when it is due.
func (c *course) pace(due func(int) time.Time, numbers chan<- int) {
	for number := range c.n {
		for wait := time.Until(due(number)); wait > 0; wait = time.Until(due(number)) {
			sleepFor(wait)
		}
		numbers <- number
	}
	close(numbers)
}

// latency sends at a fixed rate, and measures from the time at which a message was due until its
// handler is called. A message that waits behind something slow has waited.
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
		numbers := make(chan int, c.n)
		for range senders {
			go func() {
				for number := range numbers {
					if err := c.side.publish(ctx, c.load.one(number)); err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		c.pace(func(number int) time.Time { return began.Add(due(number)) }, numbers)
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
