package bus_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// TestRepliesGoToInboxesOnly: a request cannot have the service publish where it wants, with the
// service's rights, and the handler is not called for it.
func TestRepliesGoToInboxesOnly(t *testing.T) {
	testlog.Expect(t, "message poisoned")
	for _, tc := range []struct {
		to   string
		opts []router.Option
		want int // replies
	}{
		{to: "payments"},
		{to: "replies"},
		{to: "millrace.poison.pricing", opts: []router.Option{router.ReplyTo("answers")}},
		{to: "replies-of-mine", want: 1},
		{to: "answers", opts: []router.Option{router.ReplyTo("answers"), router.ReplyTo("others")}, want: 1},
	} {
		t.Run(tc.to, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int32
				b := answering(t, func(context.Context, QuoteRequest) (Quote, error) { calls.Add(1); return Quote{7}, nil }, tc.opts...)
				if err := b.Publish(t.Context(), "quotes", QuoteRequest{"a"}, bus.WithHeader(bus.HeaderReplyTo, tc.to)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if n := len(bustest.Published[Quote](t, b, tc.to)); n != tc.want || int(calls.Load()) != tc.want {
					t.Errorf("%d replies and %d calls, want %d", n, calls.Load(), tc.want)
				}
				q, err := poison.Open(t.Context(), b, "pricing")
				if err != nil {
					t.Fatal(err)
				}
				for e, err := range q.List(t.Context(), poison.Filter{}) {
					if tc.want > 0 || err != nil || e.Failure.Class != "permanent" || !strings.Contains(e.Failure.Text, "router.ReplyTo") {
						t.Errorf("%+v %v", e.Failure, err)
					}
				}
			})
		})
	}
}

// TestReservedTopics: no way of publishing reaches the topics that hold Millrace's own records.
func TestReservedTopics(t *testing.T) {
	p := bustest.NewRecorder(t)
	ctx := p.Handling(t.Context(), &bus.Message{ID: "cause"})
	for topic, want := range map[string]bool{
		"millrace.poison.billing": true, "millrace_poison_billing": true, "millrace.parking.1.g.t": true, "millrace.": true,
		"millrace": false, "millrace-orders": false, "millraces.x": false, "my.millrace.x": false,
	} {
		for way, err := range map[string]error{
			"Publish":         p.Publish(ctx, topic, placed{}),
			"PublishMessages": p.PublishMessages(ctx, topic, &bus.Message{}),
			"Emit":            bus.Emit(ctx, topic, placed{}),
			"Emit, later":     bus.Emit(engine.New(ctx, p.Bus, bus.Delivery{Message: &bus.Message{ID: "cause"}}), topic, placed{}),
			"All":             bus.PublishAll(ctx, p, topic, []placed{{}}),
		} {
			if errors.Is(err, bus.ErrInvalid) != want || !want && err != nil {
				t.Errorf("%s to %s: %v", way, topic, err)
			}
		}
	}
}
