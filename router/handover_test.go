package router_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// firstTry is a handler of messages that all fail at their first try, in whatever member of the group.
type firstTry struct {
	t     *testing.T
	err   error
	took  time.Duration // by the first try
	delay time.Duration // of err

	mu      sync.Mutex
	told    map[string][]int // by message: the number of each try
	due     map[string]time.Time
	handled journal
}

func (f *firstTry) handle(ctx context.Context, m *bus.Message) error {
	err := f.next(ctx, m)
	if err != nil {
		time.Sleep(f.took)
	}
	return err
}

func (f *firstTry) next(ctx context.Context, m *bus.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if early := f.due[m.ID].Sub(now); early > 0 {
		f.t.Errorf("%s came %v early", m.ID, early)
	}
	f.told[m.ID] = append(f.told[m.ID], bus.DeliveryFrom(ctx).Attempt)
	if len(f.told[m.ID]) == 1 {
		f.due[m.ID] = now.Add(f.took + f.delay)
		return f.err
	}
	f.handled.note(m)
	return nil
}

// TestTriesGoWithTheirLane: a lane that is handed over in order takes along the numbers and the delays of its messages' tries, wherever a
// message with a short delay is in that moment.
func TestTriesGoWithTheirLane(t *testing.T) {
	const keys, each = 20, 2
	soon := bus.RetryAfter(errLater, 50*time.Millisecond)
	for _, place := range []struct {
		name  string
		opts  []router.Option
		batch bool
		err   error         // of the first try; nil: soon
		took  time.Duration // by the first try
		from  time.Duration // when the lanes are handed over; 0: while the first message is tried again
		keeps time.Duration // how long that keeps the worker
		slow  bool          // another message keeps the worker
	}{
		{name: "its handler runs", opts: []router.Option{router.Workers(keys)}, took: time.Second, from: 500 * time.Millisecond},
		{name: "its handler runs and postpones it", opts: []router.Option{router.Workers(keys)}, took: time.Second, from: 500 * time.Millisecond, err: bus.Postpone(errLater, 900*time.Millisecond)},
		{name: "it is not due yet", opts: []router.Option{router.Workers(keys)}, from: 20 * time.Millisecond},
		{name: "it waits for a worker", opts: []router.Option{router.Workers(1)}, slow: true, from: 500 * time.Millisecond},
		{name: "a worker has it and has not begun", opts: []router.Option{router.Workers(1)}, keeps: 500 * time.Microsecond},
		{name: "a worker has it and turns out slow", opts: []router.Option{router.Workers(1)}, keeps: 5 * time.Millisecond}, // the watchdog takes it back
		{name: "it waits for its batch", opts: []router.Option{router.Fill(100, time.Second)}, batch: true, from: 1500 * time.Millisecond},
	} {
		for _, stops := range []bool{false, true} {
			name := place.name + ", another member comes"
			if stops {
				name = place.name + ", the member stops"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := openBus(t)
					f := &firstTry{t: t, err: soon, took: place.took, delay: 50 * time.Millisecond, told: map[string][]int{}, due: map[string]time.Time{}}
					want := []int{1, 2}
					if place.err != nil {
						f.err, want = place.err, []int{1, 1}
						f.delay, _ = bus.PostponedFor(f.err)
					}
					again := func() {}
					handle := func(ctx context.Context, m *bus.Message) error {
						if m.Key == "slow" {
							time.Sleep(time.Second)
							return nil
						}
						err := f.handle(ctx, m)
						if err == nil {
							again()
						}
						return err
					}
					member := func() *router.Router {
						r := router.New(b, "g")
						if !place.batch {
							r.HandleFunc("t", handle, place.opts...)
							return r
						}
						r.Handle("t", batchFunc(func(ctx context.Context, ms []*bus.Message) error {
							errs := make([]error, len(ms))
							for i, m := range ms {
								errs[i] = handle(ctx, m)
							}
							return bus.PerMessage(errs)
						}), place.opts...)
						return r
					}
					stop := run(t, member(), aFailure)
					handOver := func() { run(t, member(), aFailure) }
					if stops {
						handOver = func() { _ = stop() }
					}
					if place.from == 0 {
						var once atomic.Bool // a sync.Once would keep the next member's handler waiting, and virtual time with it
						again = func() {
							if once.CompareAndSwap(false, true) {
								go handOver()
								time.Sleep(place.keeps)
							}
						}
					}
					for n := range each {
						for k := range keys {
							publish(t, b, "t", &bus.Message{ID: fmt.Sprint(k, "-", n), Key: fmt.Sprint(k, ":")})
						}
					}
					synctest.Wait()
					if place.slow {
						publish(t, b, "t", &bus.Message{ID: "slow", Key: "slow"})
					}
					if time.Sleep(place.from); place.from > 0 {
						handOver()
					}
					time.Sleep(time.Minute)
					if stops {
						if err := stop(); err != nil {
							t.Fatal(err)
						}
						run(t, member(), aFailure)
						time.Sleep(time.Minute)
					}
					synctest.Wait()
					for k := range keys {
						var line []string
						for n := range each {
							id := fmt.Sprint(k, "-", n)
							line = append(line, id)
							if !slices.Equal(f.told[id], want) {
								t.Errorf("the numbers of the tries of %s were %v, want %v", id, f.told[id], want)
							}
						}
						if got := f.handled.of(fmt.Sprint(k, ":")); !slices.Equal(got, line) {
							t.Errorf("handled were %v, want %v", got, line)
						}
					}
				})
			})
		}
	}
}
