package pairwise_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/internal/pairwise"
)

func TestCompare(t *testing.T) {
	for name, tc := range map[string]struct {
		limits       pairwise.Limits
		usual, other time.Duration
		want         pairwise.Result
	}{
		"as quick":      {pairwise.Limits{Enough: 5, Slow: time.Minute, Share: 0.8}, time.Second, time.Second, pairwise.Result{Pairs: 5, Share: 1, Usual: time.Second}},
		"slower":        {pairwise.Limits{Enough: 5, Slow: time.Minute, Share: 0.8}, time.Second, 2 * time.Second, pairwise.Result{Pairs: 10, Share: 0.5, Usual: time.Second}},
		"takes long":    {pairwise.Limits{Enough: 5, Slow: 7 * time.Second, Share: 0.8}, time.Second, time.Second, pairwise.Result{Pairs: 4, Share: 1, Usual: time.Second}},
		"takes longest": {pairwise.Limits{Enough: 50, Slow: 7 * time.Second, Share: 0.8}, time.Second, 2 * time.Second, pairwise.Result{Pairs: 5, Share: 0.5, Usual: time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				takes := func(d time.Duration) func() time.Duration { return func() time.Duration { time.Sleep(d); return d } }
				got := pairwise.Compare(tc.limits, takes(tc.usual), takes(tc.other))
				if got != tc.want {
					t.Errorf("%+v, want %+v", got, tc.want)
				}
			})
		})
	}
}

// TestCompareInTurns: the first thing changes from pair to pair.
func TestCompareInTurns(t *testing.T) {
	var calls string
	noted := func(as string) func() time.Duration { return func() time.Duration { calls += as; return 1 } }
	pairwise.Compare(pairwise.Limits{Enough: 3, Slow: time.Minute}, noted("u"), noted("o"))
	if calls != "uoouuo" {
		t.Error(calls)
	}
}
