package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// What the handler says about an error wins over what the policy says.
func TestTheHandlersMarkWins(t *testing.T) {
	boom := errors.New("boom")
	all := func(error) bool { return true }
	policies := map[string]router.Policy{
		"none":      {},
		"permanent": {Permanent: all},
		"ignore":    {Ignore: all},
		"both":      {Permanent: all, Ignore: all},
	}
	for mark, tc := range map[string]struct {
		err      error
		tries    []time.Duration // when
		attempts []int           // their numbers
		poisoned int
		failed   uint64
	}{
		"RetryAfter":  {bus.RetryAfter(boom, time.Minute), []time.Duration{0, time.Minute}, []int{1, 2}, 0, 1},
		"Unavailable": {bus.Unavailable(boom, time.Minute), []time.Duration{0, time.Minute}, []int{1, 1}, 0, 0},
		"Permanent":   {bus.Permanent(boom), []time.Duration{0}, []int{1}, 1, 1},
		"Ignore":      {bus.Ignore(boom), []time.Duration{0}, []int{1}, 0, 0},
	} {
		for name, policy := range policies {
			for _, batches := range []bool{false, true} {
				t.Run(fmt.Sprint(mark, " policy=", name, " batches=", batches), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						b := openBus(t)
						policy.Retry = router.Schedule{10 * time.Second}
						r := router.New(b, "g", policy)
						start := time.Now()
						var tries []time.Duration
						var attempts []int
						handle := func(ctx context.Context, _ *bus.Message) error {
							tries, attempts = append(tries, time.Since(start).Truncate(time.Second)), append(attempts, bus.DeliveryFrom(ctx).Attempt)
							if len(tries) == 1 {
								return fmt.Errorf("handler: %w", tc.err)
							}
							return nil
						}
						if batches {
							r.Handle("t", eachOf{bus.HandlerFunc(handle)})
						} else {
							r.HandleFunc("t", handle)
						}
						run(t, r, aFailure, aPoisoning, aPause)
						publish(t, b, "t", &bus.Message{ID: "m"})
						time.Sleep(time.Hour)
						synctest.Wait()
						if !slices.Equal(tries, tc.tries) || !slices.Equal(attempts, tc.attempts) {
							t.Errorf("tried at %v as %v, want %v as %v", tries, attempts, tc.tries, tc.attempts)
						}
						h := r.Health().Routes[0]
						if n := len(poisoned(t, b, "g")); n != tc.poisoned || h.Failed != tc.failed {
							t.Errorf("%d poisoned, %d failed, want %d and %d", n, h.Failed, tc.poisoned, tc.failed)
						}
					})
				})
			}
		}
	}
}

// An error that the policy ignores counts as success in every way: outputs are published, and
// whoever waits for the success is told.
func TestIgnoredByThePolicyIsSuccess(t *testing.T) {
	boom := errors.New("boom")
	for _, batches := range []bool{false, true} {
		t.Run(fmt.Sprint("batches=", batches), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := openBus(t)
				r := router.New(b, "g", router.Policy{Ignore: router.Is(boom), Retry: router.Never})
				tries, told, ended := 0, 0, 0
				handle := func(ctx context.Context, m *bus.Message) error {
					tries++
					return errors.Join(
						bus.OnSuccess(ctx, func(context.Context) error { told++; return nil }),
						bus.OnEnd(ctx, func(_ context.Context, succeeded func(*bus.Message) bool) error {
							if succeeded(m) {
								ended++
							}
							return nil
						}),
						bus.Emit(ctx, "out", &bus.Message{ID: "of " + m.ID}, bus.WithCause(m)), boom)
				}
				if batches {
					r.Handle("t", eachOf{bus.HandlerFunc(handle)})
				} else {
					r.HandleFunc("t", handle)
				}
				var out []string
				r.HandleFunc("out", func(_ context.Context, m *bus.Message) error { out = append(out, m.ID); return nil })
				run(t, r)
				publish(t, b, "t", &bus.Message{ID: "m"})
				time.Sleep(time.Minute)
				synctest.Wait()
				if tries != 1 || told != 1 || ended != 1 || !slices.Equal(out, []string{"of m"}) {
					t.Errorf("%d tries, OnSuccess told %d times, OnEnd of a success %d times, outputs %v: want 1, 1, 1, [of m]", tries, told, ended, out)
				}
				if h := r.Health().Routes[0]; h.Failed != 0 || len(poisoned(t, b, "g")) != 0 {
					t.Errorf("%d failed, %v poisoned", h.Failed, poisoned(t, b, "g"))
				}
			})
		})
	}
}
