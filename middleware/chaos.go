package middleware

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// ErrChaos is wrapped by the errors of [Chaos], and is the value of its panics.
var ErrChaos = errors.New("chaos")

// ChaosConfig sets the probability of each fault, from 0 (never, the default) to 1 (always).
type ChaosConfig struct {
	// Seed repeats the same decisions, call by call.
	Seed uint64
	// Delay is the probability that a call is delayed, by up to MaxDelay.
	Delay    float64
	MaxDelay time.Duration
	// Fail is the probability that a call fails: half of these before the handler is called, half
	// after it has succeeded.
	Fail float64
	// Panic is the probability that a call panics instead of calling the handler.
	Panic float64
	// Duplicate is the probability that the handler is called a second time after it has succeeded.
	Duplicate float64
}

// Chaos makes calls fail, to test how handlers and their middleware react. The decisions come from
// one seeded source: with one worker, and the same messages, a seed repeats a run.
//
// Put it innermost, where a handler's own failures come from.
func Chaos(c ChaosConfig) bus.Middleware {
	for _, p := range []struct {
		field string
		value float64
	}{{"Delay", c.Delay}, {"Fail", c.Fail}, {"Panic", c.Panic}, {"Duplicate", c.Duplicate}} {
		if !(p.value >= 0 && p.value <= 1) {
			return invalidf("ChaosConfig.%s is %v: want 0 to 1", p.field, p.value)
		}
	}
	if c.MaxDelay < 0 || c.Delay > 0 && c.MaxDelay == 0 {
		return invalidf("ChaosConfig.MaxDelay is %v: want more than 0", c.MaxDelay)
	}
	dice := &dice{config: c, rand: rand.New(rand.NewPCG(c.Seed, 0))}
	return bus.Around(func(ctx context.Context, call bus.Call) error {
		fate := dice.roll()
		if fate.delay > 0 {
			t := time.NewTimer(fate.delay)
			defer t.Stop()
			select {
			case <-t.C:
			case <-ctx.Done():
				return fmt.Errorf("%w: delayed: %w", ErrChaos, context.Cause(ctx))
			}
		}
		switch {
		case fate.panics:
			panic(ErrChaos)
		case fate.failsBefore:
			return fmt.Errorf("%w: failed before the handler", ErrChaos)
		}
		err := call.Next(ctx)
		if err == nil && fate.twice {
			err = call.Next(ctx)
		}
		if err == nil && fate.failsAfter {
			return fmt.Errorf("%w: failed after the handler", ErrChaos)
		}
		return err
	})
}

// dice decide the fate of a call.
type dice struct {
	config ChaosConfig
	mu     sync.Mutex
	rand   *rand.Rand
}

type fate struct {
	delay                                  time.Duration
	panics, failsBefore, failsAfter, twice bool
}

// roll always draws the same number of times, so that one setting does not change the decisions of
// the others.
func (d *dice) roll() (f fate) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delayed, long := d.rand.Float64() < d.config.Delay, d.rand.Float64()
	if delayed {
		f.delay = 1 + time.Duration(long*float64(d.config.MaxDelay-1))
	}
	f.panics = d.rand.Float64() < d.config.Panic
	fails, before := d.rand.Float64() < d.config.Fail, d.rand.Float64() < 0.5
	f.failsBefore, f.failsAfter = fails && before, fails && !before
	f.twice = d.rand.Float64() < d.config.Duplicate
	return f
}
