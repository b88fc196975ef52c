package outbox_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// TestOnceInBusEnds: after the commit of its transaction, a call ends with success. Middleware
// learns it by the result, OnSuccess and OnEnd by their calls. Nothing is logged as a warning or an
// error.
func TestOnceInBusEnds(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		for _, batch := range []bool{false, true} {
			t.Run(fmt.Sprintf("batch=%v", batch), func(t *testing.T) {
				b := openBus(t, s.busURL(t, "same"), bus.WithLogger(testlog.New(t)))
				topic, e := unique("orders"), s.effects(t, false)
				const n = 20
				msgs, sum := orders(n)
				if err := b.PublishMessages(t.Context(), topic, msgs...); err != nil {
					t.Fatal(err)
				}
				var returned, succeeded, ended atomic.Int64
				told := bus.Around(func(ctx context.Context, c bus.Call) error {
					size := int64(c.Len())
					if err := bus.OnSuccess(ctx, func(context.Context) error { succeeded.Add(size); return nil }); err != nil {
						return err
					}
					if err := bus.OnEnd(ctx, func(_ context.Context, ok func(*bus.Message) bool) error {
						for m := range c.Messages() {
							if ok(m) {
								ended.Add(1)
							}
						}
						return nil
					}); err != nil {
						return err
					}
					err := c.Next(ctx)
					if err == nil {
						returned.Add(size)
					}
					return err
				})
				r := router.New(b, "billing")
				r.Handle(topic, e.handler(outbox.SQL(s.db, nil), batch), router.Use(told))
				stop := running(t, r)
				e.await(t, b, topic, "billing", n)
				stop()
				e.judge(t, b, n, sum)
				if returned.Load() != n || succeeded.Load() != n || ended.Load() != n {
					t.Errorf("of %d messages, handlers returned nil for %d, OnSuccess heard of %d, OnEnd of %d", n, returned.Load(), succeeded.Load(), ended.Load())
				}
			})
		}
	})
}
