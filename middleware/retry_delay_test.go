package middleware_test

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/middleware"
)

// A delay so long that a tenth more of it is no duration is waited for; it does not come at once.
func TestRetryWaitsForTheLongestDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 50 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Hour, cancel)
			calls := 0
			_ = call(ctx, middleware.Retry([]time.Duration{math.MaxInt64}), &bus.Message{}, func(context.Context, *bus.Message) error {
				calls++
				return errBoom
			})
			if calls != 1 {
				t.Fatalf("%d calls in an hour, want 1", calls)
			}
		}
	})
}
