package middleware_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/middleware"
)

// A Retry outside calls again while the marks of succeeded messages are held: two batches do not
// wait for each other.
func TestDeduplicateInRetriedBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		retry := middleware.Retry([]time.Duration{time.Second, time.Second})
		dedup := middleware.Deduplicate(&middleware.DedupMemory{}, nil)
		chain := func(next bus.Handler) bus.Handler { return retry(dedup(next)) }
		var mu sync.Mutex
		var handled []string
		failed := false
		h := batchFunc(func(_ context.Context, ms []*bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			errs := make([]error, len(ms))
			for i, m := range ms {
				if m.ID == "a" && !failed {
					failed = true
					errs[i] = errBoom
					continue
				}
				handled = append(handled, m.ID)
			}
			return bus.PerMessage(errs)
		})
		var first, second []error
		var wg sync.WaitGroup
		wg.Go(func() { first = endedBatch(ctx, b, chain, h, &bus.Message{ID: "a"}, &bus.Message{ID: "b"}) })
		synctest.Wait() // b has succeeded, a waits for its retry
		wg.Go(func() { second = endedBatch(ctx, b, chain, h, &bus.Message{ID: "b"}, &bus.Message{ID: "a"}) })
		wg.Wait()
		checkOneOfEach(t, start, handled, append(first, second...))
	})
}

// The same where the retries bring messages that another middleware had kept away.
func TestDeduplicateInBatchesThatGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		retry := middleware.Retry([]time.Duration{time.Second})
		dedup := middleware.Deduplicate(&middleware.DedupMemory{}, nil)
		var mu sync.Mutex
		var handled []string
		h := batchFunc(func(_ context.Context, ms []*bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			for _, m := range ms {
				handled = append(handled, m.ID)
			}
			return nil
		})
		// run handles a and b; the check of one of them succeeds at the second try.
		run := func(late string) []error {
			checked := false
			validate := middleware.Validate(func(_ context.Context, m *bus.Message) error {
				if m.ID == late && !checked {
					checked = true
					return bus.RetryAfter(errBoom, time.Second)
				}
				return nil
			})
			chain := func(next bus.Handler) bus.Handler { return retry(validate(dedup(next))) }
			return endedBatch(ctx, b, chain, h, &bus.Message{ID: "a"}, &bus.Message{ID: "b"})
		}
		var first, second []error
		var wg sync.WaitGroup
		wg.Go(func() { first = run("a") })
		wg.Go(func() { second = run("b") })
		wg.Wait()
		checkOneOfEach(t, start, handled, append(first, second...))
	})
}

// checkOneOfEach checks that a and b were handled once, that nobody waited for the end of a
// context, and that each error is one of a try.
func checkOneOfEach(t *testing.T, start time.Time, handled []string, errs []error) {
	t.Helper()
	if slices.Sort(handled); !slices.Equal(handled, []string{"a", "b"}) {
		t.Errorf("handled %v, want a and b once each", handled)
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("it took %v", took)
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, errBoom) {
			t.Errorf("%v, want the failure before", err)
		}
	}
}
