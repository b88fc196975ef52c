package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/millrace-go/millrace/eventstore"
)

// oneConflict: among appends that come together, those that conflict fail alone.
func oneConflict(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	mustAppend(t, s, "s-7", eventstore.New, happened{1})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			_, err := s.Append(ctx, fmt.Sprintf("s-%d", i), eventstore.New, happened{1})
			if i == 7 {
				conflicts(t, err, 1)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	same(t, "events", len(collect(t, s.All(ctx, 0))), 50)
}

// manyWriters: two buses append to a few streams, in all ways. What was acknowledged is there,
// once, and versions are dense.
func manyWriters(t *testing.T, p Place) {
	name := topic()
	stores := []*eventstore.Store{reopen(t, p, name), reopen(t, p, name)}
	ctx := bounded(t)
	var acknowledged, refused atomic.Int64
	var wg sync.WaitGroup
	for w := range 8 {
		s := stores[w%2]
		wg.Go(func() {
			for i := range 30 {
				stream := fmt.Sprintf("s-%d", (w+i)%5)
				var done eventstore.Appended
				var err error
				switch i % 3 {
				case 0:
					done, err = s.Append(ctx, stream, eventstore.Any, events(1, 1+i%4)...)
				case 1:
					version := int64(0)
					for e, err := range s.Back(ctx, stream) {
						if err != nil {
							t.Error(err)
						}
						version = e.Version
						break
					}
					done, err = s.Append(ctx, stream, eventstore.At(version), events(1, 1+i%4)...)
				case 2:
					var both []eventstore.Appended
					both, err = s.AppendAll(ctx, eventstore.To(stream, eventstore.Any, events(1, 1+i%4)...), eventstore.To("both", eventstore.Any, happened{1}))
					if err == nil {
						done = both[0]
						acknowledged.Add(1)
					}
				}
				conflict, ok := errors.AsType[*eventstore.Conflict](err)
				switch {
				case err == nil && done.Version > 0:
					acknowledged.Add(int64(1 + i%4))
				case ok && i%3 == 1 && conflict.Actual > conflict.Expected.Version():
					refused.Add(1)
				default:
					t.Errorf("appended %+v, %v", done, err)
				}
			}
		})
	}
	wg.Wait()
	got := collect(t, stores[0].All(ctx, 0))
	same(t, "events", int64(len(got)), acknowledged.Load())
	dense(t, got)
	t.Logf("%d events, %d conflicts", len(got), refused.Load())
}

// dense checks that positions grow, and that the versions of each stream are dense and in their
// order.
func dense(t testing.TB, all []eventstore.Recorded) {
	t.Helper()
	versions := map[string]int64{}
	var last eventstore.Position
	for _, e := range all {
		if e.Position <= last {
			t.Fatalf("position %d came after %d", e.Position, last)
		}
		if e.Version != versions[e.Stream]+1 {
			t.Fatalf("%s: version %d came after %d", e.Stream, e.Version, versions[e.Stream])
		}
		last, versions[e.Stream] = e.Position, e.Version
	}
}

func all(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	const n = 2345
	for i := 0; i < n; i += 67 {
		var writes []eventstore.Write
		for j := range min(67, n-i) {
			writes = append(writes, eventstore.To(fmt.Sprintf("s-%d", j), eventstore.Any, happened{i + j}))
		}
		if _, err := s.AppendAll(ctx, writes...); err != nil {
			t.Fatal(err)
		}
	}
	got := collect(t, s.All(ctx, 0))
	same(t, "events", len(got), n)
	dense(t, got)
	rest := collect(t, s.All(ctx, got[999].Position))
	same(t, "the rest", len(rest), n-1000)
	same(t, "its first", rest[0].Position, got[1000].Position)
	same(t, "after the end", len(collect(t, s.All(ctx, got[n-1].Position))), 0)
	other := open(t, p)
	same(t, "another store", len(collect(t, other.All(ctx, 0))), 0)
}

func follow(t *testing.T, p Place) {
	name := topic()
	s, other := reopen(t, p, name), reopen(t, p, name)
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	mustAppend(t, s, "a", eventstore.New, happened{1})
	got := make(chan eventstore.Recorded)
	ended := make(chan error, 1)
	go func() {
		for e, err := range s.Follow(ctx, 0) {
			if err != nil {
				ended <- err
				return
			}
			got <- e
		}
	}()
	same(t, "first", brief([]eventstore.Recorded{<-got}), "a@1")
	for i := range 5 {
		mustAppend(t, []*eventstore.Store{s, other}[i%2], fmt.Sprintf("b-%d", i), eventstore.New, happened{1})
		same(t, "next", (<-got).Stream, fmt.Sprintf("b-%d", i))
	}
	cancel()
	is(t, <-ended, context.Canceled)
}
