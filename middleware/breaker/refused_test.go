package breaker_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/middleware/breaker"
	"github.com/millrace-go/millrace/router"
)

// A call refused by an open breaker is neither poisoned nor ignored by middleware outside, whatever
// that matches.
func TestNothingGivesUpWhatIsRefused(t *testing.T) {
	testlog.Expect(t, "not available; consuming pauses", "circuit breaker")
	all := func(error) bool { return true }
	for _, name := range []string{"poison", "ignore"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := bustest.New(t)
				store, err := driver.Of(b).Poison(t.Context(), "review")
				if err != nil {
					t.Fatal(err)
				}
				outer := middleware.Poison(store, all)
				if name == "ignore" {
					outer = middleware.Ignore(all)
				}
				var calls atomic.Int32
				var up atomic.Bool
				r := router.New(b, "g", router.Workers(1))
				r.HandleFunc("in", func(context.Context, *bus.Message) error {
					if calls.Add(1); up.Load() {
						return nil
					}
					return errDown
				}, router.Use(outer, breaker.New(breaker.Config{Failures: 3, Open: time.Hour})))
				bustest.Run(t, r)
				for i := range 20 {
					if err := b.PublishMessages(t.Context(), "in", &bus.Message{ID: fmt.Sprint(i), Key: "k"}); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := r.Health().Routes[0].Handled; n != 3 || calls.Load() != 3 {
					t.Errorf("%d settled after %d calls, want those 3 that the breaker let through", n, calls.Load())
				}
				up.Store(true)
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if calls.Load() != 20 {
					t.Errorf("%d calls in the end, want 20", calls.Load())
				}
			})
		})
	}
}
