package router_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// TestStates goes through the states of a subscription, each with its reason and the time since when.
func TestStates(t *testing.T) {
	testlog.Expect(t, "cannot subscribe yet", "disconnected", "a dependency is not available")
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.subscribeErr = []error{errors.New("connection refused"), errors.New("connection refused")}
		r := router.New(bus.New(f), "g")
		begun, release := make(chan struct{}), make(chan struct{})
		var back atomic.Bool
		route := r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			if m.Key == "slow" {
				close(begun)
				<-release
			}
			if m.Key == "api" && !back.Load() {
				return bus.Unavailable(errors.New("the payment API is down"), time.Minute)
			}
			return nil
		})
		expect := func(state router.State, reason string, wrong string) {
			t.Helper()
			synctest.Wait()
			h := route.Health()
			if h.State != state || (reason == "") != (h.Reason == "") || !strings.Contains(h.Reason, reason) {
				t.Errorf("%s because of %q, want %s because of %q", h.State, h.Reason, state, reason)
			}
			if state != router.StateNew && !h.Since.Equal(time.Now()) {
				t.Errorf("%s since %v, and now is %v", h.State, h.Since, time.Now())
			}
			if err := r.Health().Err(); (err == nil) != (wrong == "") || err != nil && !strings.Contains(err.Error(), wrong) {
				t.Errorf("%s: health is %v, want %q", state, err, wrong)
			}
			time.Sleep(time.Second) // so that the next state begins later
			synctest.Wait()
		}
		expect(router.StateNew, "", "handler g/t is new")
		over := make(chan error, 1)
		go func() { over <- r.Run(t.Context()) }()
		expect(router.StateStarting, "connection refused", "connection refused")
		if h := route.Health(); h.State != router.StateWaiting {
			t.Errorf("subscribed: %s", h.State)
		}
		lane := []bus.Lane{{ID: 1, Epoch: 7}}
		f.observer.Assigned(lane)
		expect(router.StateRunning, "", "")
		route.Pause()
		expect(router.StatePaused, "Pause", "")
		o := f.observer.(driver.ConditionObserver)
		o.Condition(driver.Disconnected, errors.New("no route to host"))
		expect(router.StateDisconnected, "no route to host", "no route to host")
		o.Condition(driver.Disconnected, nil)
		expect(router.StatePaused, "Pause", "")
		route.Resume()
		expect(router.StateRunning, "", "")
		f.send(1, 7, 1, "api")
		expect(router.StateSuspended, "the payment API is down", "")
		back.Store(true)
		time.Sleep(59 * time.Second)
		expect(router.StateRunning, "", "")
		f.observer.Lost(lane, errors.New("session expired"))
		expect(router.StateWaiting, "other members", "")
		f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 8}})
		f.send(1, 8, 2, "slow")
		<-begun
		ended := make(chan error, 1)
		go func() { ended <- r.Shutdown(t.Context()) }()
		expect(router.StateDraining, "asked to stop", "handler g/t is draining")
		close(release)
		expect(router.StateStopped, "", "")
		if err := errors.Join(<-ended, <-over); err != nil {
			t.Error(err)
		}
	})
}

// TestConditionsInHealth: a condition that a driver tells is in health at once, and gone at once; the log has it once.
func TestConditionsInHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		r := router.New(bus.New(f), "g")
		route := r.HandleFunc("t", nop)
		run(t, r, "lane 3 cannot be consumed")
		o := f.observer.(driver.ConditionObserver)
		o.Condition("lane 3 cannot be consumed", &bus.Error{Op: "receive", Broker: "fake", Topic: "t", Err: errors.New("RESOURCE_LOCKED")})
		h := route.Health()
		if h.State != router.StateWaiting || bus.IsRetryable(h.Err) || !strings.Contains(fmt.Sprint(h.Err), "lane 3 cannot be consumed: ") {
			t.Errorf("%s: %v", h.State, h.Err)
		}
		time.Sleep(time.Minute)
		o.Condition("lane 3 cannot be consumed", nil)
		if h := route.Health(); h.Err != nil {
			t.Error(h.Err)
		}
	})
}

// TestHealthAsJSON: errors are texts, and what is zero is left out where it would mislead.
func TestHealthAsJSON(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	h := router.Health{Routes: []router.RouteHealth{
		{
			Name: "g/t", Group: "g", Topic: "t", State: router.StateDisconnected, Reason: "refused", Since: at, Err: errors.New("refused"), Lanes: 2,
			InFlight: 5, Held: 1, Parked: 3, Delayed: 2, NextDue: at, Skipped: 1, SkippedTypes: map[string]uint64{"old": 1}, Unknown: 2, Lag: &bus.Lag{Messages: 7, Oldest: at}, Handled: 9, Failed: 8, Poisoned: 1,
			LastError: errors.New("boom"),
		},
		{Name: "g/u", Group: "g", Topic: "u", State: router.StateRunning, Since: at},
	}}
	got, err := json.MarshalIndent(h, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
 "error": "handler g/t is disconnected: refused",
 "routes": [
  {
   "name": "g/t",
   "group": "g",
   "topic": "t",
   "state": "disconnected",
   "reason": "refused",
   "since": "2030-01-02T03:04:05Z",
   "lanes": 2,
   "inFlight": 5,
   "held": 1,
   "parked": 3,
   "delayed": 2,
   "nextDue": "2030-01-02T03:04:05Z",
   "skipped": 1,
   "skippedTypes": {
    "old": 1
   },
   "unknown": 2,
   "lag": {
    "messages": 7,
    "oldest": "2030-01-02T03:04:05Z"
   },
   "handled": 9,
   "failed": 8,
   "poisoned": 1,
   "error": "refused",
   "lastError": "boom"
  },
  {
   "name": "g/u",
   "group": "g",
   "topic": "u",
   "state": "running",
   "since": "2030-01-02T03:04:05Z",
   "lanes": 0,
   "inFlight": 0,
   "held": 0,
   "parked": 0,
   "delayed": 0,
   "skipped": 0,
   "unknown": 0,
   "handled": 0,
   "failed": 0,
   "poisoned": 0
  }
 ]
}`
	if string(got) != want {
		t.Errorf("%s", got)
	}
}

// TestCountsOfWhatWaits: held, parked and delayed messages are counted apart, with the next due time.
func TestCountsOfWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{500 * time.Millisecond, time.Hour}})
		route := r.HandleFunc("t", func(context.Context, *bus.Message) error { return errLater })
		run(t, r, aFailure, aPoisoning)
		start := time.Now()
		deliver := func(m *bus.Message, opts ...bus.PublishOption) {
			if err := b.Publish(t.Context(), "t", m, opts...); err != nil {
				t.Fatal(err)
			}
		}
		deliver(&bus.Message{Key: "a"})
		deliver(&bus.Message{Key: "a"}) // behind it
		deliver(&bus.Message{Key: "b"})
		deliver(&bus.Message{Key: "c"}, bus.WithDelay(24*time.Hour))
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		h := route.Health()
		if h.Held != 2 || h.InFlight != 3 || h.Parked != 0 || h.Delayed != 1 || h.NextDue.Before(start.Add(500*time.Millisecond)) || h.NextDue.After(start.Add(time.Second)) {
			t.Errorf("while they are held: %+v", h)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		h = route.Health()
		if h.Held != 0 || h.InFlight != 0 || h.Parked != 3 || h.Delayed != 1 || h.NextDue.Before(start.Add(time.Hour)) || h.NextDue.After(start.Add(67*time.Minute)) {
			t.Errorf("while they are parked: %+v", h)
		}
		deliver(&bus.Message{Key: "d"})
		if full, err := r.HealthWithLag(t.Context()); err != nil || full.Routes[0].Lag.Messages > 1 {
			t.Errorf("%+v, %v", full.Routes[0].Lag, err)
		}
		time.Sleep(time.Hour * 100)
		synctest.Wait()
		if h = route.Health(); h.Parked != 0 || h.Delayed != 0 || h.Held != 0 || !h.NextDue.IsZero() {
			t.Errorf("in the end: %+v", h)
		}
	})
}
