package router_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// laneAway is a driver that cannot read one lane's parked messages for a while.
type laneAway struct {
	driver.Driver
	lane    atomic.Int32 // the first one that was asked for; -1: none was
	away    atomic.Bool
	fetches atomic.Int32 // calls that asked for the lane while it was away
}

type laneAwaySource struct {
	driver.ParkingSource
	d *laneAway
}

func (d *laneAway) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	source, err := d.Driver.Subscribe(ctx, s, o)
	if err != nil {
		return nil, err
	}
	return &laneAwaySource{source.(driver.ParkingSource), d}, nil
}

func (s *laneAwaySource) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	errs := make([]error, len(tokens))
	var there []bus.Token
	s.d.lane.CompareAndSwap(-1, tokens[0].Lane)
	for i, t := range tokens {
		if t.Lane == s.d.lane.Load() && s.d.away.Load() {
			errs[i] = errors.New("no leader")
		} else {
			there = append(there, t)
		}
	}
	n, err := s.ParkingSource.Fetch(ctx, there, dst)
	if err != nil || len(there) == len(tokens) {
		return n, err
	}
	s.d.fetches.Add(1)
	return n, &bus.PublishError{Errs: errs}
}

// TestOneLaneCannotBeFetched: parked messages of other lanes are handled when they are due. Those
// of the lane are handled once when it is back, by the same router or by the next one. The router
// does not ask for the lane all the time, and stops without it.
func TestOneLaneCannotBeFetched(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%t", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { oneLaneAway(t, restart) })
		})
	}
}

func oneLaneAway(t *testing.T, restart bool) {
	d := &laneAway{Driver: driver.Of(openBus(t))}
	d.lane.Store(-1)
	b := bus.New(d)
	const keys, each = 40, 3
	var mu sync.Mutex
	handled := map[string]int{} // by payload
	start := func() (stop func() error) {
		r := router.New(b, "g", router.Logger(testlog.New(t, "fetching parked messages failed")))
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			handled[string(m.Payload)]++
			return nil
		})
		return run(t, r)
	}
	stop := start()
	d.away.Store(true)
	for n := range each {
		for k := range keys {
			if err := b.Publish(t.Context(), "t", fmt.Sprint(k, "/", n), bus.WithKey(fmt.Sprint(k)), bus.WithDelay(time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(time.Hour + 10*time.Minute)
	synctest.Wait()
	came := len(handled)
	if late := keys*each - came; late == 0 || came == 0 || late%each != 0 {
		t.Fatalf("%d messages came while the lane was away", came)
	}
	if n := d.fetches.Load(); n == 0 || n > 10*60/2 {
		t.Errorf("the router asked for the lane %d times in ten minutes", n)
	}
	if restart {
		begun := time.Now()
		if err := stop(); err != nil || time.Since(begun) > time.Second {
			t.Errorf("stopped after %v: %v", time.Since(begun), err)
		}
		stop = start()
	}
	d.away.Store(false)
	time.Sleep(10 * time.Second)
	synctest.Wait()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if len(handled) != keys*each {
		t.Errorf("%d of %d messages came when the lane was back", len(handled), keys*each)
	}
	for payload, n := range handled {
		if n != 1 {
			t.Errorf("%s was handled %d times", payload, n)
		}
	}
}
