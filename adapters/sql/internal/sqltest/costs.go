package sqltest

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// tries is how often a cost is measured. The least counts: background work only adds.
const tries = 10

// RoundTrips counts the round trips of a call that publishes, and of a batch that is settled,
// whatever its size. params are those with which the driver does nothing by itself.
func RoundTrips(t *testing.T, db Database, params ...string) {
	behind, proxy := db.through(t)
	b := behind.Open(t, append(params, "poll=1m", "lease=10m", "commit=1s")...)
	least := func(do func()) int {
		fewest := 1 << 30
		for range tries {
			before := proxy.Trips()
			do()
			fewest = min(fewest, proxy.Trips()-before)
		}
		return fewest
	}
	topic := Topic()
	for _, n := range []int{1, 7, 100} { // after the first calls, which prepare their statements
		if trips := least(func() { Publish(t, b, topic, BenchMessages(n)...) }); trips != 1 {
			t.Errorf("publishing %d: %d round trips, want 1", n, trips)
		}
	}
	if trips := least(func() { Publish(t, b, topic, BenchMessages(1000)...) }); trips > 6 {
		t.Errorf("publishing 1000: %d round trips", trips)
	}

	o := NewObserver()
	s := Subscribe(t, b, topic, "g", bus.Earliest, o)
	defer Close(t, s)
	o.Await(t, lanes)
	for _, n := range []int{10, 500} {
		trips := least(func() {
			if err := s.Settle(t.Context(), tokens(Receive(t, s, n))); err != nil {
				t.Fatal(err)
			}
			if err := s.(driver.Committer).Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
		if trips > 3 { // reading, and writing the positions of all lanes
			t.Errorf("settling %d: %d round trips", n, trips)
		}
	}
}

// Allocations bounds a message's cost in allocations: published with others, published alone, and
// consumed.
func Allocations(t *testing.T, db Database, together, alone, consumed float64) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const each, total = 100, 5000
	b := db.Open(t, "poll=1m")
	topic := Topic()
	check := func(what string, n int, budget float64, do func()) {
		fewest := float64(1 << 30)
		for range tries {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			do()
			runtime.ReadMemStats(&after)
			fewest = min(fewest, float64(after.Mallocs-before.Mallocs)/float64(n))
		}
		t.Logf("%s: %.1f allocations a message, of %.1f", what, fewest, budget)
		if fewest > budget {
			t.Errorf("%s: %.1f allocations a message, want at most %.1f", what, fewest, budget)
		}
	}
	many, one := BenchMessages(each), BenchMessages(1)
	check("published together", total, together, func() {
		for range total / each {
			Publish(t, b, topic, many...)
		}
	})
	check("published alone", each, alone, func() {
		for range each {
			Publish(t, b, topic, one...)
		}
	})
	sources := 0
	check("consumed", total, consumed, func() {
		sources++
		s, err := b.Driver().Subscribe(context.Background(), bus.Subscription{Topic: topic, Group: fmt.Sprint("g", sources), InFlight: 2048, Bytes: 32 << 20}, NewObserver())
		if err != nil {
			t.Fatal(err)
		}
		defer Close(t, s)
		buf, toks := make([]bus.Delivery, 512), make([]bus.Token, 512)
		for n := 0; n < total; {
			k, err := s.Receive(context.Background(), buf, 32<<20)
			if err != nil {
				t.Fatal(err)
			}
			for i := range k {
				toks[i] = buf[i].Token
			}
			if err := s.Settle(context.Background(), toks[:k]); err != nil {
				t.Fatal(err)
			}
			n += k
		}
	})
}
