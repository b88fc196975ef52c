package middleware_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/router"
)

func tenant(m *bus.Message) string { return m.Subject }

// A tenant over its rate keeps no other waiting, with single messages and with batches, and is
// served at its rate.
func TestThrottleByHoldsUpItsKeyOnly(t *testing.T) {
	for _, batches := range []bool{false, true} {
		t.Run(fmt.Sprint("batches=", batches), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const loud = 300
				b := bustest.New(t, bus.WithLogger(testlog.New(t)))
				var mu sync.Mutex
				counts := map[string]int{}
				var quiet, last time.Duration // how long the slowest quiet message and the last of all have waited
				done := make(chan struct{})
				handle := func(m *bus.Message) {
					mu.Lock()
					defer mu.Unlock()
					counts[m.Subject]++
					if last = time.Since(m.Time); m.Subject == "quiet" {
						quiet = max(quiet, last)
					}
					if counts["loud"] == loud && counts["quiet"] == 60 {
						close(done)
					}
				}
				// Calls are few, although the line is long: messages come back one by one.
				calls := 0
				counted := bus.Around(func(ctx context.Context, c bus.Call) error {
					mu.Lock()
					calls += c.Len()
					mu.Unlock()
					return c.Next(ctx)
				})
				r := router.New(b, "g", router.Workers(16), router.Timeout(5*time.Second), router.Policy{Retry: router.Never},
					router.Use(counted, middleware.ThrottleBy(tenant, 1, 1)))
				if batches {
					r.Handle("in", batchFunc(func(_ context.Context, ms []*bus.Message) error {
						for _, m := range ms {
							handle(m)
						}
						return nil
					}), router.Fill(20, 0))
				} else {
					r.HandleFunc("in", func(_ context.Context, m *bus.Message) error { handle(m); return nil })
				}
				bustest.Run(t, r)
				publish := func(i int, subject string) {
					if err := b.Publish(t.Context(), "in", &bus.Message{ID: fmt.Sprint(subject, i), Key: fmt.Sprint(subject, i), Subject: subject}); err != nil {
						t.Fatal(err)
					}
				}
				for i := range loud {
					publish(i, "loud")
				}
				for i := range 60 {
					time.Sleep(2 * time.Second)
					publish(i, "quiet")
				}
				select {
				case <-done:
				case <-time.After(time.Hour):
				}
				if counts["loud"] != loud || counts["quiet"] != 60 {
					t.Errorf("handled %v, want all", counts)
				}
				if quiet > 5*time.Second {
					t.Errorf("a message of the quiet tenant has waited for %v", quiet)
				}
				if last > 2*loud*time.Second {
					t.Errorf("the last message has waited for %v at one a second", last)
				}
				if calls > 5*loud {
					t.Errorf("%d calls for %d messages", calls, loud+60)
				}
				t.Logf("quiet %v, last %v, %d calls", quiet, last, calls)
				if es := poisonedIn(t, b, "g"); len(es) > 0 {
					t.Errorf("%d healthy messages were poisoned: %s", len(es), es[0].Failure.Text)
				}
			})
		})
	}
}

// Of a batch that would have to wait beyond its deadline, as many messages go on as can.
func TestThrottleLetsAPartOfABatchThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var ms []*bus.Message
		for i := range 10 {
			ms = append(ms, &bus.Message{ID: fmt.Sprint(i)})
		}
		h := &batch{}
		errs := bus.Outcomes(middleware.Throttle(1, 2)(h).(bus.BatchHandler).HandleBatch(ctx, ms), len(ms))
		if len(h.got) != 6 {
			t.Errorf("handled %v, want the 2 of the burst and 4 that wait", h.got)
		}
		for i, err := range errs {
			if d, away := bus.UnavailableFor(err); away != (i >= 6) || away && d != 5*time.Second {
				t.Errorf("message %d: %v, in %v", i, err, d)
			}
		}
	})
}
