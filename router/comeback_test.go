package router_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// gated holds fetches up until its gate opens.
type gated struct {
	driver.Driver
	gate chan struct{}
}

type gatedSource struct {
	driver.ParkingSource
	gate chan struct{}
}

func (d *gated) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	source, err := d.Driver.Subscribe(ctx, s, o)
	if err != nil {
		return nil, err
	}
	return &gatedSource{source.(driver.ParkingSource), d.gate}, nil
}

func (s *gatedSource) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	<-s.gate
	return s.ParkingSource.Fetch(ctx, tokens, dst)
}

// TestDueWhileTheLaneWentAndCame: what is being fetched while its lane goes to another member and comes back is handled.
func TestDueWhileTheLaneWentAndCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		gate := make(chan struct{})
		slow := bus.New(&gated{driver.Of(b), gate})
		var handled atomic.Int32
		member := func() *router.Router {
			r := router.New(slow, "g", router.Workers(4))
			r.HandleFunc("t", func(context.Context, *bus.Message) error { handled.Add(1); return nil })
			return r
		}
		run(t, member())
		for i := range 40 {
			if err := b.Publish(t.Context(), "t", "x", bus.WithKey(fmt.Sprint(i)), bus.WithDelay(time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour + time.Minute)
		stop := run(t, member()) // takes half of the lanes
		time.Sleep(time.Second)
		stopped := make(chan error, 1)
		go func() { stopped <- stop() }() // and gives them back
		time.Sleep(time.Minute)
		close(gate)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := handled.Load(); n != 40 {
			t.Errorf("%d of 40 were handled", n)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

// TestReplayToNobody: what is replayed, and nobody takes any more, goes back into the poison queue.
func TestReplayToNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type order struct{ N int }
		type other struct{ N int }
		type more struct{ N int }
		b := openBus(t)
		first := router.New(b, "g")
		router.On(first, "t", func(context.Context, order) error { return bus.Permanent(errLater) })
		stop := run(t, first, aPoisoning)
		if err := b.Publish(t.Context(), "t", order{1}, bus.WithID("1")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		second := router.New(b, "g")
		router.On(second, "t", func(context.Context, other) error { return nil })
		router.On(second, "t", func(context.Context, more) error { return nil })
		run(t, second, aPoisoning)
		q, err := poison.Open(t.Context(), b, "g")
		if err != nil {
			t.Fatal(err)
		}
		for replays := range 2 {
			if r, err := q.Replay(t.Context(), poison.Filter{}, poison.Options{}); err != nil || r.Done != 1 {
				t.Fatalf("%+v %v", r, err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			e, err := q.Get(t.Context(), "1")
			if err != nil || e.Failure.Replays != replays+1 {
				t.Errorf("%+v %v", e.Failure, err)
			}
		}
	})
}

// TestKeyGoesOnByItself: a message that its key waits for is tried again by itself a day later. If that succeeds, nothing is left to be replayed.
func TestKeyGoesOnByItself(t *testing.T) {
	for _, fails := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			b := openBus(t)
			var j journal
			tries := 0
			r := router.New(b, "g", router.Policy{KeyWaits: true})
			r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
				if tries++; tries <= fails {
					return bus.Permanent(errLater)
				}
				j.note(m)
				return nil
			})
			run(t, r, aPoisoning)
			for _, id := range numbers(3) {
				publish(t, b, "t", &bus.Message{ID: id, Key: "k"})
			}
			q, err := poison.Open(t.Context(), b, "g")
			if err != nil {
				t.Fatal(err)
			}
			for range fails {
				synctest.Wait()
				if n, err := q.Count(t.Context(), poison.Filter{}); n != 1 || err != nil {
					t.Errorf("%d entries, %v", n, err)
				}
				time.Sleep(24*time.Hour + time.Minute)
			}
			synctest.Wait()
			if got := j.of("k"); !slices.Equal(got, numbers(3)) {
				t.Errorf("handled were %v", got)
			}
			if n, err := q.Count(t.Context(), poison.Filter{}); n != 0 || err != nil {
				t.Errorf("%d entries are left, %v", n, err)
			}
		})
	}
}

// TestKeyWaitsElsewhere: a lane that goes to another member, and to a third, takes along what waits for a replay. No handler is called for it
// until it is replayed or a day has passed since it failed, and its key is in order then.
func TestKeyWaitsElsewhere(t *testing.T) {
	for _, replay := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := openBus(t)
			var j journal
			var calls atomic.Int32
			var accepts atomic.Bool
			member := func() func() error {
				r := router.New(b, "g", router.Policy{KeyWaits: true})
				r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
					if calls.Add(1); !accepts.Load() {
						return bus.Permanent(errLater)
					}
					j.note(m)
					return nil
				})
				return run(t, r, aPoisoning)
			}
			stop := member()
			for _, id := range numbers(40) {
				publish(t, b, "t", &bus.Message{ID: id, Key: "k"})
			}
			failed := time.Now()
			synctest.Wait()
			first := poisoned(t, b, "g")
			for range 3 {
				time.Sleep(time.Hour)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				stop = member()
				synctest.Wait()
				if es := poisoned(t, b, "g"); len(es) != 1 || es[0].ID != first[0].ID || !es[0].Time.Equal(first[0].Time) || es[0].Failure != first[0].Failure || es[0].Handler != first[0].Handler {
					t.Fatalf("the entry was %+v, and is %+v", first, es)
				}
			}
			accepts.Store(true)
			if time.Sleep(time.Until(failed.Add(24*time.Hour - time.Minute))); calls.Load() != 1 {
				t.Errorf("the handler was called %d times", calls.Load())
			}
			if replay {
				q, err := poison.Open(t.Context(), b, "g")
				if err != nil {
					t.Fatal(err)
				}
				if r, err := q.Replay(t.Context(), poison.Filter{}, poison.Options{}); err != nil || r.Done != 1 {
					t.Fatalf("%+v %v", r, err)
				}
			} else {
				time.Sleep(2 * time.Minute)
			}
			synctest.Wait()
			if got := j.of("k"); !slices.Equal(got, numbers(40)) {
				t.Errorf("handled were %v", got)
			}
			if es := poisoned(t, b, "g"); len(es) != 0 {
				t.Errorf("%+v are left", es)
			}
		})
	}
}

// TestKeyWaitsNoMore: a message that its key waits for is tried again a day later. If it is to be
// tried once more soon, it waits for no replay meanwhile: there is no entry, and the lane's next
// owner goes on with the tries.
func TestKeyWaitsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var tries []int
		member := func() func() error {
			r := router.New(b, "g", router.Policy{KeyWaits: true, Retry: router.Schedule{time.Second, time.Hour}})
			r.HandleFunc("t", func(ctx context.Context, _ *bus.Message) error {
				tries = append(tries, bus.DeliveryFrom(ctx).Attempt)
				switch len(tries) {
				case 1:
					return bus.Permanent(errLater)
				case 2:
					return errLater
				}
				return nil
			})
			return run(t, r, aPoisoning, aFailure)
		}
		stop := member()
		publish(t, b, "t", &bus.Message{ID: "0", Key: "k"})
		time.Sleep(24*time.Hour + time.Minute)
		if es := poisoned(t, b, "g"); len(es) != 0 {
			t.Errorf("an entry while the message is tried again: %+v", es)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		member()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if es := poisoned(t, b, "g"); len(es) != 0 || !slices.Equal(tries, []int{1, 2, 3}) {
			t.Errorf("tries %v, entries %+v", tries, es)
		}
	})
}

// TestReplayBeginsAnew: the age of a message that is replayed begins with its next failure.
func TestReplayBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		tries := 0
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Second, time.Second, time.Second}, MaxAge: time.Minute})
		r.HandleFunc("t", func(context.Context, *bus.Message) error { tries++; return errLater })
		run(t, r, aFailure, aPoisoning)
		publish(t, b, "t", &bus.Message{ID: "1"})
		time.Sleep(time.Hour)
		synctest.Wait()
		q, err := poison.Open(t.Context(), b, "g")
		if err != nil {
			t.Fatal(err)
		}
		tries = 0
		if r, err := q.Replay(t.Context(), poison.Filter{}, poison.Options{}); err != nil || r.Done != 1 {
			t.Fatalf("%+v %v", r, err)
		}
		replayed := time.Now()
		time.Sleep(time.Hour)
		synctest.Wait()
		e, err := q.Get(t.Context(), "1")
		if err != nil || tries != 4 || e.Failure.First.Before(replayed) {
			t.Errorf("%d tries, %+v %v", tries, e.Failure, err)
		}
	})
}

// noPoison is a broker whose poison store is away.
type noPoison struct{ driver.Driver }

type noPoisonStore struct{ driver.PoisonStore }

func (d *noPoison) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	s, err := d.Driver.Poison(ctx, group)
	return &noPoisonStore{s}, err
}

func (*noPoisonStore) Put(context.Context, ...driver.PoisonEntry) error { return errLater }

// TestPoisonQueueAwayWhileAKeyWaits: other keys are parked and come back meanwhile, a stop does not wait for it, and the
// member that comes next writes the entry.
func TestPoisonQueueAwayWhileAKeyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		bad, retried := 0, 0
		handler := func(ctx context.Context, m *bus.Message) error {
			switch {
			case m.Key == "bad":
				bad++
				return bus.Permanent(errLater)
			case bus.DeliveryFrom(ctx).Attempt == 1:
				return errLater
			}
			retried++
			return nil
		}
		policy := router.Policy{KeyWaits: true, Retry: router.Schedule{2 * time.Second}}
		r := router.New(bus.New(&noPoison{driver.Of(b)}), "g", policy, router.Workers(1))
		r.HandleFunc("t", handler)
		stop := run(t, r, aFailure, aPoisoning, "the poison queue cannot be written to")
		publish(t, b, "t", &bus.Message{ID: "0", Key: "bad"})
		synctest.Wait()
		publish(t, b, "t", &bus.Message{ID: "1", Key: "slow"})
		time.Sleep(time.Hour)
		synctest.Wait()
		if retried != 1 {
			t.Errorf("another key was tried again %d times", retried)
		}
		begun := time.Now()
		if err := stop(); err != nil || time.Since(begun) > 10*time.Second {
			t.Errorf("the stop took %v: %v", time.Since(begun), err)
		}
		bad = 0
		next := router.New(b, "g", policy, router.Workers(1))
		next.HandleFunc("t", handler)
		run(t, next, aFailure, aPoisoning, "the poison queue cannot be written to")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := entries(t, b, "g"); bad != 0 || !slices.Equal(got, []string{"0"}) {
			t.Errorf("called %d times, poisoned %q", bad, got)
		}
	})
}

// TestReplayDoesNotTakeASuccessor: a message whose key waits, and which fails again before its replay has removed the entry,
// has an entry of its own.
func TestReplayDoesNotTakeASuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		r := router.New(b, "g", router.Policy{KeyWaits: true, Retry: router.Never})
		r.HandleFunc("t", func(context.Context, *bus.Message) error { return errLater })
		run(t, r, aPoisoning)
		publish(t, b, "t", &bus.Message{ID: "1", Key: "k"})
		synctest.Wait()
		store, err := driver.Of(b).Poison(t.Context(), "g")
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{}
		q := bus.New(&lateRemove{driver.Of(b)})
		queue, err := poison.Open(t.Context(), q, "g")
		if err != nil {
			t.Fatal(err)
		}
		if r, err := queue.Replay(t.Context(), poison.Filter{}, poison.Options{}); err != nil || r.Done != 1 {
			t.Fatalf("%+v %v", r, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for e, err := range store.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			ids[e.ID] = true
		}
		if len(ids) != 1 {
			t.Errorf("entries %v: the key waits for what nobody sees", ids)
		}
	})
}

// lateRemove removes entries after a second.
type lateRemove struct{ driver.Driver }

type lateStore struct{ driver.PoisonStore }

func (d *lateRemove) As(target any) bool {
	i, ok := target.(*driver.Injector)
	if ok {
		*i = d.Driver.(driver.Injector)
	}
	return ok
}

func (d *lateRemove) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	s, err := d.Driver.Poison(ctx, group)
	return &lateStore{s}, err
}

func (s *lateStore) Remove(ctx context.Context, ids ...string) error {
	time.Sleep(time.Second)
	return s.PoisonStore.Remove(ctx, ids...)
}
