package deadline_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/internal/deadline"
	"github.com/millrace-go/millrace/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

type key struct{}

// TestLikeContext does the same with context.WithTimeout and with After.
func TestLikeContext(t *testing.T) {
	makers := map[string]func(context.Context, time.Duration) (context.Context, context.CancelFunc){
		"context": context.WithTimeout,
		"After": func(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
			c := deadline.After(parent, d)
			return c, c.Cancel
		},
	}
	errOuter := errors.New("outer")
	steps := map[string]struct {
		do   func(ctx context.Context, cancelOuter context.CancelCauseFunc, cancel context.CancelFunc)
		want error
		why  error
	}{
		"nothing": {func(context.Context, context.CancelCauseFunc, context.CancelFunc) {}, nil, nil},
		"time":    {func(context.Context, context.CancelCauseFunc, context.CancelFunc) { time.Sleep(time.Hour) }, context.DeadlineExceeded, context.DeadlineExceeded},
		"cancel":  {func(_ context.Context, _ context.CancelCauseFunc, cancel context.CancelFunc) { cancel() }, context.Canceled, context.Canceled},
		"outer":   {func(_ context.Context, outer context.CancelCauseFunc, _ context.CancelFunc) { outer(errOuter) }, context.Canceled, errOuter},
		"time and cancel": {func(_ context.Context, _ context.CancelCauseFunc, cancel context.CancelFunc) {
			time.Sleep(time.Hour)
			cancel()
		}, context.DeadlineExceeded, context.DeadlineExceeded},
	}
	for maker, newContext := range makers {
		for step, tc := range steps {
			for _, early := range []bool{false, true} { // somebody waits before it happens
				for _, inner := range []bool{false, true} { // in a child
					synctest.Test(t, func(t *testing.T) {
						outer, cancelOuter := context.WithCancelCause(context.WithValue(t.Context(), key{}, "v"))
						defer cancelOuter(nil)
						ctx, cancel := newContext(outer, time.Minute)
						defer cancel()
						if at, ok := ctx.Deadline(); !ok || time.Until(at) != time.Minute {
							t.Errorf("deadline %v, %v", at, ok)
						}
						look := ctx
						if inner {
							var cancelChild context.CancelFunc
							look, cancelChild = context.WithCancel(ctx)
							defer cancelChild()
						}
						waited := false
						if early {
							context.AfterFunc(look, func() { waited = true })
							synctest.Wait()
						}
						tc.do(ctx, cancelOuter, cancel)
						synctest.Wait()
						err := look.Err()
						why := context.Cause(look)
						over := false
						select {
						case <-look.Done():
							over = true
						default:
						}
						if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) || over != (err != nil) || waited != (early && over) || !errors.Is(why, tc.why) || look.Value(key{}) != "v" {
							t.Errorf("%s, %s, early %v, child %v: %v because of %v, over %v, waited %v", maker, step, early, inner, err, why, over, waited)
						}
					})
				}
			}
		}
	}
}

func TestEarlierParent(t *testing.T) {
	parent, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c := deadline.After(parent, time.Hour)
	defer c.Cancel()
	want, _ := parent.Deadline()
	if at, _ := c.Deadline(); !at.Equal(want) {
		t.Errorf("%v, want %v", at, want)
	}
}

func TestOneAllocation(t *testing.T) {
	parent := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		c := deadline.After(parent, time.Minute)
		if c.Err() != nil {
			t.Error("over")
		}
		c.Cancel()
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
