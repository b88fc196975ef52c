package outbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// TestNilArguments: a handler that lacks what it needs is an error of Check, not a panic of its
// first message.
func TestNilArguments(t *testing.T) {
	type event struct{ N int }
	type tx struct{}
	o, err := outbox.New(outbox.Postgres, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	begin := outbox.Transactor[tx](func(context.Context, func(tx, outbox.Execer) error) error { return nil })
	h := func(context.Context, tx, event) error { return nil }
	each := func(context.Context, tx, []bus.Event[event]) error { return nil }
	odd := func(context.Context, tx, *bus.Message) error { return nil }
	for _, tc := range []struct {
		name string
		h    bus.Handler
		want string
	}{
		{"all there", outbox.Once(o, begin, h), ""},
		{"no outbox", outbox.Once(nil, begin, h), "the outbox"},
		{"no begin", outbox.Once(o, nil, h), "begin"},
		{"no function", outbox.Once[tx, event](o, begin, nil), "h"},
		{"batch without all", outbox.OnceBatch[tx, event](nil, nil, nil), "begin, h, the outbox"},
		{"batch", outbox.OnceBatch(o, begin, each), ""},
		{"in the bus without a function", outbox.OnceInBus[tx, event](begin, nil), "h"},
		{"batch in the bus without begin", outbox.OnceBatchInBus(nil, each), "begin"},
		{"events that are messages", outbox.Once(o, begin, odd), "belongs to package bus"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := router.New(bustest.New(t), "g")
			r.Handle("t", tc.h)
			err := r.Check()
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}
