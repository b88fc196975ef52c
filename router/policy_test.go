package router_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// withoutParking is a driver that cannot park.
type withoutParking struct{ driver.Driver }

func (d withoutParking) Capabilities() bus.Capabilities {
	c := d.Driver.Capabilities()
	c.Parking = false
	return c
}

func (d withoutParking) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	source, err := d.Driver.Subscribe(ctx, s, o)
	if err != nil {
		return nil, err
	}
	return struct{ bus.Source }{source}, nil
}

func TestPoliciesThatMakeNoSense(t *testing.T) {
	b := openBus(t)
	simple := bus.New(withoutParking{driver.Of(b)})
	for want, tc := range map[string]struct {
		on     *bus.Bus
		policy router.Policy
	}{
		"Policy.Retry[1] is -1ns": {b, router.Policy{Retry: router.Schedule{0, -1}}},
		"Policy.MaxAge is -1s":    {b, router.Policy{MaxAge: -time.Second}},
		"Policy.Then is 3":        {b, router.Policy{Then: router.Stop + 1}},
		"Policy.Then is -1":       {b, router.Policy{Then: router.Poison - 1}},
		"Policy.KeyWaits needs":   {simple, router.Policy{KeyWaits: true}},
		"":                        {b, router.Policy{KeyWaits: true, MaxAge: time.Second}},
	} {
		for _, own := range []bool{false, true} { // the handler's own policy is looked at too
			r := router.New(tc.on, "g", tc.policy)
			if own {
				r = router.New(tc.on, "g")
				r.HandleFunc("t", nop, tc.policy)
			} else {
				r.HandleFunc("t", nop)
			}
			err := r.Check()
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("own %v: %v, want %q", own, err, want)
			}
		}
	}
}

type refusal struct{ Code int }

func (r *refusal) Error() string { return fmt.Sprint("code ", r.Code) }

func TestMatches(t *testing.T) {
	boom, other := errors.New("boom"), errors.New("other")
	timeout := &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	for name, tc := range map[string]struct {
		match router.Match
		is    []error
		isNot []error
	}{
		"Is":              {router.Is(boom, os.ErrNotExist), []error{boom, fmt.Errorf("x: %w", boom), errors.Join(other, boom), &os.PathError{Err: os.ErrNotExist}}, []error{other, errors.New("boom")}},
		"Is of nothing":   {router.Is(), nil, []error{boom}},
		"As":              {router.As[*refusal](), []error{&refusal{}, fmt.Errorf("x: %w", &refusal{}), errors.Join(other, &refusal{}), bus.RetryAfter(&refusal{}, 0)}, []error{boom}},
		"As an interface": {router.As[net.Error](), []error{timeout, fmt.Errorf("x: %w", timeout)}, []error{boom, &refusal{}}},
		"Any":             {router.Any(router.Is(boom), router.As[*refusal]()), []error{boom, fmt.Errorf("x: %w", &refusal{})}, []error{other}},
		"Any of nothing":  {router.Any(), nil, []error{boom}},
	} {
		for _, err := range tc.is {
			if !tc.match(err) {
				t.Errorf("%s does not match %v", name, err)
			}
		}
		for _, err := range tc.isNot {
			if tc.match(err) {
				t.Errorf("%s matches %v", name, err)
			}
		}
	}
}

// MaxAge ends the tries, whoever chose the delay.
func TestMaxAge(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want []time.Duration
	}{
		"by the schedule":          {errors.New("no"), []time.Duration{0, 20 * time.Second, 40 * time.Second}},
		"asked for":                {bus.RetryAfter(errors.New("no"), 40*time.Second), []time.Duration{0, 40 * time.Second}},
		"asked for, and too late":  {bus.RetryAfter(errors.New("no"), 2*time.Minute), []time.Duration{0}},
		"asked for, for the limit": {bus.RetryAfter(errors.New("no"), time.Minute), []time.Duration{0, time.Minute}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := openBus(t)
				start := time.Now()
				var at []time.Duration
				r := router.New(b, "g", router.Policy{Retry: slices.Repeat(router.Schedule{20 * time.Second}, 10), MaxAge: time.Minute})
				r.HandleFunc("t", func(context.Context, *bus.Message) error {
					at = append(at, time.Since(start).Truncate(20*time.Second))
					return tc.err
				})
				run(t, r, aFailure, aPoisoning)
				publish(t, b, "t", &bus.Message{ID: "m"})
				time.Sleep(time.Hour)
				synctest.Wait()
				if !slices.Equal(at, tc.want) {
					t.Errorf("tried at %v, want %v", at, tc.want)
				}
				if es := poisoned(t, b, "g"); len(es) != 1 || es[0].Failure.Class != "retries exhausted" {
					t.Errorf("poisoned: %v", es)
				}
			})
		})
	}
}

// Messages that failed together do not all come back together, and none before its time.
func TestDelaysDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var mu sync.Mutex
		failed, delays := map[string]time.Time{}, map[time.Duration]bool{}
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{500 * time.Millisecond}})
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			if at, again := failed[m.ID]; again {
				d := time.Since(at)
				if delays[d] = true; d < 500*time.Millisecond || d > 551*time.Millisecond {
					t.Errorf("a delay of %v", d)
				}
				return nil
			}
			failed[m.ID] = time.Now()
			return errLater
		})
		run(t, r, aFailure)
		for i := range 50 {
			publish(t, b, "t", &bus.Message{ID: fmt.Sprint(i), Key: fmt.Sprint(i)})
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(failed) != 50 || len(delays) < 10 {
			t.Errorf("%d messages came again after %d different delays", len(failed), len(delays))
		}
	})
}
