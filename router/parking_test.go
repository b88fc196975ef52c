package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

var errLater = errors.New("later")

// journal notes what was handled, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) note(m *bus.Message) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, m.Key+m.ID)
}

// of returns what was handled of a key.
func (j *journal) of(key string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var of []string
	for _, l := range j.lines {
		if strings.HasPrefix(l, key) {
			of = append(of, l[len(key):])
		}
	}
	return of
}

func numbers(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprint(i))
	}
	return ids
}

// TestLongDelayBlocksItsKeyOnly: far more messages of other keys pass than may be in flight, and
// the key's own come behind it, in order, also those that came while it was being handled again.
func TestLongDelayBlocksItsKeyOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		fails := 3
		r := router.New(b, "g", router.InFlight(8, 1<<20), router.Policy{Retry: router.Schedule{time.Hour, time.Minute, 10 * time.Second}})
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			if m.Key == "a" && m.ID == "0" && fails > 0 {
				fails--
				return errLater
			}
			j.note(m)
			return nil
		})
		run(t, r, aFailure)
		for i := range 300 {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "a"}, &bus.Message{ID: fmt.Sprint(i), Key: "b"})
		}
		synctest.Wait()
		if got := j.of("b"); !slices.Equal(got, numbers(300)) {
			t.Errorf("of the other key came %d", len(got))
		}
		time.Sleep(time.Hour - time.Second)
		if synctest.Wait(); len(j.of("a")) > 0 {
			t.Errorf("%v came early", j.of("a"))
		}
		time.Sleep(time.Hour / 4)
		synctest.Wait()
		for i := 300; i < 320; i++ {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "a"})
		}
		synctest.Wait()
		if got := j.of("a"); !slices.Equal(got, numbers(320)) {
			t.Errorf("of the key came %v", got)
		}
	})
}

// TestSlowCallGivesRoom: the followers of a call that does not end do not fill the in-flight bound.
func TestSlowCallGivesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		release := make(chan struct{})
		r := router.New(b, "g", router.InFlight(8, 1<<20), router.Workers(2))
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			if m.Key == "a" && m.ID == "0" {
				<-release
			}
			j.note(m)
			return nil
		})
		run(t, r)
		for i := range 100 {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "a"})
		}
		for i := range 100 {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "b"})
		}
		time.Sleep(time.Second) // the watchdog's time, too
		synctest.Wait()
		if got := j.of("b"); !slices.Equal(got, numbers(100)) {
			t.Errorf("of the other key came %v", got)
		}
		close(release)
		time.Sleep(time.Second) // the watchdog's time, too
		synctest.Wait()
		if got := j.of("a"); !slices.Equal(got, numbers(100)) {
			t.Errorf("of the key came %v", got)
		}
	})
}

func TestParkedMessagesAreWithTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		handler := func(ctx context.Context, m *bus.Message) error {
			d := bus.DeliveryFrom(ctx)
			if d.Attempt == 1 && m.ID == "0" {
				return errLater
			}
			if m.ID == "0" && (d.Attempt != 2 || d.Failure == nil || d.Failure.Text != "later" || d.Failure.Attempts != 1) {
				t.Errorf("attempt %d, %+v", d.Attempt, d.Failure)
			}
			j.note(m)
			return nil
		}
		policy := router.Policy{Retry: router.Schedule{time.Hour}}
		first := router.New(b, "g", policy)
		first.HandleFunc("t", handler)
		stop := run(t, first, aFailure)
		for i := range 50 {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "a"})
		}
		synctest.Wait()
		second := router.New(b, "g", policy) // takes over half of the lanes, then all
		second.HandleFunc("t", handler)
		run(t, second, aFailure)
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for i := 50; i < 60; i++ {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "a"})
		}
		synctest.Wait()
		if got := j.of("a"); len(got) > 0 {
			t.Errorf("%v came early", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := j.of("a"); !slices.Equal(got, numbers(60)) {
			t.Errorf("came %v", got)
		}
	})
}

func TestDelayedPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		start := time.Now()
		r := router.New(b, "g")
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			if m.ID == "late" && time.Since(start) < time.Hour {
				t.Errorf("came after %v", time.Since(start))
			}
			j.note(m)
			return nil
		})
		run(t, r)
		if err := b.Publish(t.Context(), "t", "x", bus.WithID("late"), bus.WithKey("k"), bus.WithDelay(time.Hour)); err != nil {
			t.Fatal(err)
		}
		publish(t, b, "t", &bus.Message{ID: "now", Key: "k"})
		synctest.Wait()
		if got := j.of("k"); !slices.Equal(got, []string{"now"}) {
			t.Errorf("came %v", got)
		}
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		if got := j.of("k"); !slices.Equal(got, []string{"now", "late"}) {
			t.Errorf("came %v", got)
		}
	})
}

// TestKeyWaits: followers of a poisoned message come after its replay, or after it was dropped.
func TestKeyWaits(t *testing.T) {
	for _, replay := range []bool{true, false} {
		t.Run(fmt.Sprint("replay=", replay), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := openBus(t)
				var j journal
				bad := true
				r := router.New(b, "g", router.Policy{KeyWaits: true})
				r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
					if m.ID == "0" && bad {
						return bus.Permanent(errLater)
					}
					j.note(m)
					return nil
				})
				run(t, r, aPoisoning)
				for i := range 5 {
					publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "a"}, &bus.Message{ID: fmt.Sprint(i), Key: "b"})
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				entries := poisoned(t, b, "g")
				if len(entries) != 2 || !entries[0].Waits || len(j.lines) > 0 {
					t.Fatalf("%+v; handled %v", entries, j.lines)
				}
				bad = false
				injector, _ := bus.As[driver.Injector](b)
				for _, e := range entries {
					p := driver.Parking{Withdraw: !replay, Delivery: bus.Delivery{Message: e.Message, Token: bus.Token{Lane: e.Lane, Position: e.Position, Parked: true}}}
					if err := injector.Inject(t.Context(), "t", "g", []driver.Parking{p}); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				want := numbers(5)
				if !replay {
					want = want[1:]
				}
				for _, key := range []string{"a", "b"} {
					if got := j.of(key); !slices.Equal(got, want) {
						t.Errorf("of %s came %v, want %v", key, got, want)
					}
				}
			})
		})
	}
}

// TestUnavailablePausesAndProbes: no try is counted, nothing is called in the pause, one call is
// let through after it.
func TestUnavailablePausesAndProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		start := time.Now()
		var mu sync.Mutex
		calls := map[time.Duration]int{}
		done := 0
		r := router.New(b, "g", router.Workers(4), router.Policy{Retry: router.Never})
		r.HandleFunc("t", func(ctx context.Context, _ *bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			since := time.Since(start).Round(time.Second)
			calls[since]++
			if since < 3*time.Minute {
				return bus.Unavailable(errLater, time.Minute)
			}
			if a := bus.DeliveryFrom(ctx).Attempt; a != 1 {
				t.Errorf("attempt %d", a)
			}
			done++
			return nil
		})
		run(t, r, aPause)
		for i := range 100 {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: fmt.Sprint(i)})
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if done != 100 || calls[time.Minute] != 1 || calls[2*time.Minute] != 1 || calls[0] > 4 || len(calls) != 4 {
			t.Errorf("%d done, calls %v", done, calls)
		}
		if n := len(poisoned(t, b, "g")); n != 0 {
			t.Errorf("%d poisoned", n)
		}
	})
}

func TestAtMostOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		r := router.New(b, "g", router.Guarantee(router.AtMostOnce), router.DrainTimeout(time.Second))
		r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
			j.note(m)
			<-ctx.Done() // as if the process died
			return ctx.Err()
		})
		stop := run(t, r, "handlers still run")
		publish(t, b, "t", &bus.Message{ID: "0", Key: "a"})
		synctest.Wait()
		_ = stop()
		r = router.New(b, "g")
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { j.note(m); return nil })
		run(t, r)
		publish(t, b, "t", &bus.Message{ID: "1", Key: "a"})
		synctest.Wait()
		if got := j.of("a"); !slices.Equal(got, numbers(2)) {
			t.Errorf("came %v", got)
		}
	})
}

// parkCounter counts what a router parks.
type parkCounter struct {
	driver.Driver
	parked atomic.Int64
}

type countedSource struct {
	driver.ParkingSource
	counter *parkCounter
}

func (d *parkCounter) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	source, err := d.Driver.Subscribe(ctx, s, o)
	if err != nil {
		return nil, err
	}
	return countedSource{source.(driver.ParkingSource), d}, nil
}

func (s countedSource) Park(ctx context.Context, ps []driver.Parking) error {
	s.counter.parked.Add(int64(len(ps)))
	return s.ParkingSource.Park(ctx, ps)
}

// TestQuickKeysAreNotParked: keys always have followers when messages come quicker than they are
// handled. That is no reason to move them to the broker. In virtual time, the handlers take no time
// at all.
func TestQuickKeysAreNotParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memoryBus := openBus(t)
		counter := &parkCounter{Driver: driver.Of(memoryBus)}
		const n = 20_000
		ms := make([]*bus.Message, n)
		for i := range ms {
			ms[i] = &bus.Message{Key: fmt.Sprint(i % 50), Payload: []byte("x")}
		}
		publish(t, memoryBus, "t", ms...)
		var handled atomic.Int64
		r := router.New(bus.New(counter), "g", router.InFlight(256, 1<<20))
		r.HandleFunc("t", func(context.Context, *bus.Message) error {
			handled.Add(1)
			return nil
		})
		stop := run(t, r)
		synctest.Wait()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if handled.Load() != n {
			t.Errorf("%d of %d messages were handled", handled.Load(), n)
		}
		if parked := counter.parked.Load(); parked > 0 {
			t.Errorf("%d messages were parked", parked)
		}
	})
}
