// Package pairwise compares how long two things take on a machine that others use, too: it does
// them in alternation, pair by pair.
package pairwise

import (
	"cmp"
	"slices"
	"time"
)

// Limits sets the number of pairs.
type Limits struct {
	// Enough pairs end the comparison if the share is reached. Otherwise, because of disturbances,
	// there are up to twice as many.
	Enough int
	// Slow is the time after which three pairs are enough; after twice Slow the comparison ends.
	Slow time.Duration
	// Share is the demanded share of the usual rate.
	Share float64
}

// Result is the outcome of a comparison.
type Result struct {
	Pairs int
	// Share is the rate of the second thing as a share of the first's: the median over the pairs.
	Share float64
	// Usual is the median time of the first thing.
	Usual time.Duration
}

// Compare runs usual and other in alternation. Each returns the time it took.
func Compare(l Limits, usual, other func() time.Duration) Result {
	const least = 3
	var times, shares []float64
	start := time.Now()
	for {
		var took [2]time.Duration
		sides := [2]func() time.Duration{usual, other}
		for i := range sides {
			i = (i + len(shares)) % 2 // the first in a pair changes
			took[i] = sides[i]()
		}
		times = append(times, took[0].Seconds())
		shares = append(shares, took[0].Seconds()/took[1].Seconds())
		n, passed := len(shares), time.Since(start)
		r := Result{Pairs: n, Share: median(shares), Usual: time.Duration(median(times) * float64(time.Second))}
		enough := n >= l.Enough || n >= least && passed > l.Slow
		if enough && r.Share >= l.Share || n >= 2*l.Enough || passed > 2*l.Slow {
			return r
		}
	}
}

func median[T cmp.Ordered](of []T) T {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
