package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// Defects that buses have had; docs/failure-handling.md lists them.

type slowHook struct{}

// hookTime is more than what a minute's delay may have added at random, so that one which is
// shortened by it shows.
const hookTime = 7 * time.Second

func (slowHook) Handled(context.Context, router.Handled) { time.Sleep(hookTime) }

// A hook that takes its time neither shortens nor adds to a delay more than its own time.
func TestHooksDoNotChangeTheDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var mu sync.Mutex
		var failed, tried []time.Time
		r := router.New(b, "g", router.Hooks(slowHook{}), router.Policy{Retry: router.Schedule{100 * time.Millisecond, time.Minute, 0}})
		r.HandleFunc("t", func(context.Context, *bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			tried, failed = append(tried, time.Now()), append(failed, time.Now())
			return errLater
		})
		run(t, r, aFailure, aPoisoning)
		publish(t, b, "t", &bus.Message{ID: "0"})
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(tried) != 4 {
			t.Fatalf("%d tries", len(tried))
		}
		for i, want := range []time.Duration{100 * time.Millisecond, time.Minute, 0} {
			if d := tried[i+1].Sub(failed[i]); d < want || d > want+want/10+hookTime {
				t.Errorf("delay %d is %v, want %v", i, d, want)
			}
		}
	})
}

// What cannot be decoded does not stop what comes behind it, of its key neither.
func TestUndecodableRecordStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type order struct{ N int }
		b := openBus(t)
		var got []int
		r := router.New(b, "g")
		router.On(r, "t", func(_ context.Context, o order) error { got = append(got, o.N); return nil }, router.Workers(1))
		run(t, r, aPoisoning)
		for i, payload := range []string{`{"N":1}`, `{"N":`, `{"N":"two"}`, ``, `{"N":3}`} {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "k", Type: "order", ContentType: "application/json", Payload: []byte(payload)})
		}
		synctest.Wait()
		if !slices.Equal(got, []int{1, 3}) || len(poisoned(t, b, "g")) != 3 {
			t.Errorf("handled %v, %d poisoned", got, len(poisoned(t, b, "g")))
		}
	})
}

// Messages behind one that has not succeeded are settled, and it is not; also where it cannot be
// parked at the stop, so that only its position brings it back.
func TestFailedRecordIsNotCommittedPast(t *testing.T) {
	t.Run("restart", func(t *testing.T) { failedAndRestarted(t, func(b *bus.Bus) *bus.Bus { return b }) })
	t.Run("restart without parking", func(t *testing.T) {
		failedAndRestarted(t, func(b *bus.Bus) *bus.Bus { return bus.New(withoutParking{driver.Of(b)}) })
	})
	t.Run("positions", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			var broken atomic.Bool
			broken.Store(true)
			r := router.New(bus.New(f), "g", router.Workers(1), router.Policy{Retry: slices.Repeat(router.Schedule{500 * time.Millisecond}, 100)})
			r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
				if broken.Load() && m.Key == "1" {
					return errLater
				}
				return nil
			})
			stop := run(t, r, aFailure)
			f.observer.Assigned([]bus.Lane{{ID: 0, Epoch: 1}})
			for i := range 5 {
				f.send(0, 1, int64(i), fmt.Sprint(i))
			}
			settled := func() []int64 {
				time.Sleep(5 * time.Second)
				synctest.Wait()
				return slices.Sorted(slices.Values(f.settledNow()))
			}
			if got := settled(); !slices.Equal(got, []int64{0, 2, 3, 4}) {
				t.Errorf("settled %v while 1 fails", got)
			}
			broken.Store(false)
			if got := settled(); !slices.Equal(got, []int64{0, 1, 2, 3, 4}) {
				t.Errorf("settled %v in the end", got)
			}
			broken.Store(true)
			f.send(0, 1, 5, "1")
			settled()
			if err := stop(); err != nil {
				t.Error(err)
			}
			if got := settled(); slices.Contains(got, 5) {
				t.Errorf("settled %v by the stop, and 5 has failed", got)
			}
		})
	})
}

// failedAndRestarted stops a router while a message waits for its next try, and starts another.
func failedAndRestarted(t *testing.T, with func(*bus.Bus) *bus.Bus) {
	synctest.Test(t, func(t *testing.T) {
		b := with(openBus(t))
		broken := true
		var got []string
		start := func() (stop func() error) {
			r := router.New(b, "g", router.Workers(1), router.Policy{Retry: router.Schedule{500 * time.Millisecond}})
			r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
				if broken && m.ID == "1" {
					return errors.New("not now")
				}
				got = append(got, m.ID)
				return nil
			})
			return run(t, r, aFailure)
		}
		stop := start()
		const n = 500 // so that many are behind it in its lane
		for i := range n {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: fmt.Sprint(i)})
		}
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		broken = false
		start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(got) != n || got[n-1] != "1" || slices.Index(got, "1") != n-1 {
			t.Errorf("handled %d, the last is %q: want %d, and 1 as the last, once", len(got), got[len(got)-1], n)
		}
	})
}
