package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// Defects that buses have had; docs/failure-handling.md lists them.

type slowHook struct{}

func (slowHook) Handled(context.Context, router.Handled) { time.Sleep(700 * time.Millisecond) }

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
		run(t, r)
		publish(t, b, "t", &bus.Message{ID: "0"})
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(tried) != 4 {
			t.Fatalf("%d tries", len(tried))
		}
		for i, want := range []time.Duration{100 * time.Millisecond, time.Minute, 0} {
			if d := tried[i+1].Sub(failed[i]); d < want || d > want+want/10+700*time.Millisecond {
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
		run(t, r)
		for i, payload := range []string{`{"N":1}`, `{"N":`, `{"N":"two"}`, ``, `{"N":3}`} {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: "k", Type: "order", ContentType: "application/json", Payload: []byte(payload)})
		}
		synctest.Wait()
		if !slices.Equal(got, []int{1, 3}) || len(poisoned(t, b, "g")) != 3 {
			t.Errorf("handled %v, %d poisoned", got, len(poisoned(t, b, "g")))
		}
	})
}

// Messages behind one that has not succeeded are settled, and it is not.
func TestFailedRecordIsNotCommittedPast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
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
			return run(t, r)
		}
		stop := start()
		for i := range 5 {
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
		slices.Sort(got[:len(got)-1]) // different keys have no order
		if want := []string{"0", "2", "3", "4", "1"}; !slices.Equal(got, want) {
			t.Errorf("handled %v, want %v", got, want)
		}
	})
}
