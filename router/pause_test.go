package router_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// TestPauseEndsAlthoughTheProbesLaneWent: the call that was let through ends within the pause that
// another call has asked for meanwhile, and its message goes with its lane. The pause ends in time
// all the same.
func TestPauseEndsAlthoughTheProbesLaneWent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		missing := errors.New("the database is away")
		handled := map[string][]time.Duration{}
		start := time.Now()
		r := router.New(bus.New(f), "g", router.Workers(2), router.Logger(testlog.New(t, "not available")))
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			handled[m.Key] = append(handled[m.Key], time.Since(start))
			switch call := m.Key + string(rune('0'+len(handled[m.Key]))); call {
			case "probe1":
				return bus.Unavailable(missing, 200*time.Millisecond)
			case "probe2":
				time.Sleep(1300 * time.Millisecond) // to 1.5 s
				return bus.Unavailable(missing, 100*time.Millisecond)
			case "other1":
				time.Sleep(time.Second)
				return bus.Unavailable(missing, time.Second) // to 2 s
			}
			return nil
		})
		run(t, r)
		f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 7}, {ID: 2, Epoch: 8}})
		f.send(2, 8, 20, "other")
		synctest.Wait()
		f.send(1, 7, 10, "probe")
		time.Sleep(1200 * time.Millisecond)
		f.observer.Revoking(t.Context(), []bus.Lane{{ID: 1, Epoch: 7}})
		time.Sleep(time.Minute)
		synctest.Wait()
		if calls := handled["other"]; len(calls) != 2 || calls[1] != 2*time.Second {
			t.Errorf("calls: %v", handled)
		}
	})
}
