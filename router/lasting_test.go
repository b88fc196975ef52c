package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// wrapped is a driver whose calls a test replaces.
type wrapped struct {
	driver.Driver
	park   func(ctx context.Context, ps []driver.Parking, park func(context.Context, []driver.Parking) error) error
	poison func(ctx context.Context, e driver.PoisonEntry) error // before it is put

	mu       sync.Mutex
	observer bus.LaneObserver // of the last subscription
	lanes    []bus.Lane       // that were assigned to any
}

// assigned notes the lanes of a subscription.
type assigned struct {
	driver.ParkingObserver
	w *wrapped
}

func (a assigned) Assigned(lanes []bus.Lane) {
	a.w.mu.Lock()
	a.w.lanes = append(a.w.lanes, lanes...)
	a.w.mu.Unlock()
	a.ParkingObserver.Assigned(lanes)
}

type wrappedSource struct {
	driver.ParkingSource
	w *wrapped
}

type wrappedPoison struct {
	driver.PoisonStore
	w *wrapped
}

func (w *wrapped) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	o = assigned{o.(driver.ParkingObserver), w}
	w.mu.Lock()
	w.observer = o
	w.mu.Unlock()
	source, err := w.Driver.Subscribe(ctx, s, o)
	if err != nil {
		return nil, err
	}
	return &wrappedSource{source.(driver.ParkingSource), w}, nil
}

func (s *wrappedSource) Park(ctx context.Context, ps []driver.Parking) error {
	if s.w.park == nil {
		return s.ParkingSource.Park(ctx, ps)
	}
	return s.w.park(ctx, ps, s.ParkingSource.Park)
}

func (w *wrapped) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	s, err := w.Driver.Poison(ctx, group)
	return &wrappedPoison{s, w}, err
}

func (p *wrappedPoison) Put(ctx context.Context, es ...driver.PoisonEntry) error {
	if p.w.poison != nil {
		if err := p.w.poison(ctx, es[0]); err != nil {
			return err
		}
	}
	return p.PoisonStore.Put(ctx, es...)
}

// parksAllBut parks all but one message, of which it says err.
func parksAllBut(id string, err error) func(context.Context, []driver.Parking, func(context.Context, []driver.Parking) error) error {
	return func(ctx context.Context, ps []driver.Parking, park func(context.Context, []driver.Parking) error) error {
		errs := make([]error, len(ps))
		for i := range ps {
			if ps[i].Key+ps[i].ID == id {
				errs[i] = err
			} else if err := park(ctx, ps[i:i+1]); err != nil {
				return err
			}
		}
		if slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
			return &bus.PublishError{Errs: errs}
		}
		return nil
	}
}

// TestRefusedForGoodWaitsInMemory: a message that the broker never parks is tried again when it is due, its key in order behind it, and nobody
// else waits for it.
func TestRefusedForGoodWaitsInMemory(t *testing.T) {
	for name, lasting := range map[string]error{
		"too large": &bus.Error{Op: "park", Broker: "test", Err: bus.ErrTooLarge},
		"lane full": &bus.Error{Op: "park", Broker: "test", Err: errLater, Retryable: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &wrapped{Driver: driver.Of(openBus(t))}
				refuse := parksAllBut("a0", lasting)
				var over atomic.Bool
				w.park = func(ctx context.Context, ps []driver.Parking, park func(context.Context, []driver.Parking) error) error {
					if over.Load() {
						return park(ctx, ps)
					}
					return refuse(ctx, ps, park)
				}
				b := bus.New(w)
				var j journal
				log := testlog.New(t, "handler failed", "the broker does not park a message", "parking failed")
				r := router.New(b, "g", router.Logger(log), router.InFlight(64, 1<<20), router.Policy{Retry: router.Schedule{time.Minute}})
				start := time.Now()
				r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
					first := bus.DeliveryFrom(ctx).Attempt == 1
					if first && (m.Key == "a" && m.ID == "0" || m.Key == "b" && m.ID == "x0") {
						return errLater
					}
					if m.Key == "b" && time.Since(start) > 70*time.Second {
						t.Errorf("another key was tried again after %v", time.Since(start))
					}
					j.note(m)
					return nil
				})
				stop := run(t, r)
				for _, id := range numbers(20) {
					publish(t, b, "t", &bus.Message{ID: id, Key: "a"}, &bus.Message{ID: "x" + id, Key: "b"}, &bus.Message{ID: id, Key: "c"})
				}
				time.Sleep(59 * time.Second)
				if synctest.Wait(); len(j.of("a")) > 0 || len(j.of("c")) != 20 {
					t.Errorf("before it was due came %v, and %d of a third key", j.of("a"), len(j.of("c")))
				}
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if len(j.of("b")) != 20 {
					t.Errorf("of another key came %v", j.of("b"))
				}
				want := numbers(20)
				if name == "lane full" { // it is tried again when there is room
					want = nil
				}
				if got := j.of("a"); !slices.Equal(got, want) {
					t.Errorf("of its key came %v, want %v", got, want)
				}
				over.Store(true)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if got := j.of("a"); !slices.Equal(got, numbers(20)) {
					t.Errorf("of its key came %v in the end", got)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestPoisonStoreThatHangs keeps no worker, and not the poison queue of another group.
func TestPoisonStoreThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wrapped{Driver: driver.Of(openBus(t))}
		var hangs atomic.Bool
		hangs.Store(true)
		w.poison = func(ctx context.Context, e driver.PoisonEntry) error {
			if e.Group != "g" || !hangs.Load() {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		b := bus.New(w)
		r := router.New(b, "g", router.Workers(2), router.Policy{Retry: router.Never})
		var good atomic.Int32
		handler := func(_ context.Context, m *bus.Message) error {
			if m.ID == "bad" {
				return errLater
			}
			good.Add(1)
			return nil
		}
		r.HandleFunc("t", handler)
		r.Group("other").HandleFunc("t", handler)
		run(t, r, aPoisoning, "the poison queue cannot be written to")
		for i := range 5 {
			publish(t, b, "t", &bus.Message{ID: "bad", Key: fmt.Sprint("bad", i)})
		}
		synctest.Wait()
		publish(t, b, "t", &bus.Message{ID: "good", Key: "good"})
		synctest.Wait()
		if good.Load() != 2 || len(poisoned(t, b, "other")) != 5 {
			t.Errorf("%d of 2 handled, %d of 5 poisoned in the other group", good.Load(), len(poisoned(t, b, "other")))
		}
		time.Sleep(time.Minute)
		if err := r.Health().Err(); err == nil || !strings.Contains(err.Error(), "poison queue cannot be written to") {
			t.Errorf("health is %v", err)
		}
		hangs.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(poisoned(t, b, "g")); n != 5 || r.Health().Err() != nil {
			t.Errorf("%d of 5 poisoned in the end, health is %v", n, r.Health().Err())
		}
	})
}

// TestPoisonStoreThatRefuses: the message stays, out of flight, and others go on; health tells of it. When the store takes it, it is there.
func TestPoisonStoreThatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wrapped{Driver: driver.Of(openBus(t))}
		var refuses atomic.Bool
		refuses.Store(true)
		w.poison = func(_ context.Context, e driver.PoisonEntry) error {
			if refuses.Load() || len(e.Failure.Stack) > 0 {
				return &bus.Error{Op: "poison", Broker: "test", Err: bus.ErrTooLarge}
			}
			return nil
		}
		b := bus.New(w)
		log := testlog.New(t, "the poison queue refuses", "message poisoned")
		r := router.New(b, "g", router.Logger(log), router.InFlight(4, 1<<20), router.Policy{Retry: router.Never})
		var good atomic.Int32
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			if m.ID == "bad" {
				panic("oh")
			}
			good.Add(1)
			return nil
		})
		run(t, r)
		for i := range 10 {
			publish(t, b, "t", &bus.Message{ID: "bad", Key: fmt.Sprint("bad", i)}, &bus.Message{ID: "good", Key: fmt.Sprint("good", i)})
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		h := r.Health()
		if good.Load() != 10 || h.Routes[0].InFlight != 0 || h.Err() == nil || !strings.Contains(h.Err().Error(), "refuses message") {
			t.Errorf("%d of 10 handled, health is %+v", good.Load(), h)
		}
		refuses.Store(false)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := len(poisoned(t, b, "g")); n != 10 || r.Health().Err() != nil {
			t.Errorf("%d of 10 poisoned in the end, health is %v", n, r.Health().Err())
		}
	})
}

// TestParkedGoOnWhileThePoisonQueueIsAway: messages that came back and wait for the poison queue do not keep others from coming back.
func TestParkedGoOnWhileThePoisonQueueIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wrapped{Driver: driver.Of(openBus(t))}
		w.poison = func(context.Context, driver.PoisonEntry) error { return errLater }
		b := bus.New(w)
		var late atomic.Int32
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Second}})
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			if m.Key != "late" {
				return errLater
			}
			late.Add(1)
			return nil
		})
		run(t, r, aFailure, "the poison queue cannot be written to")
		for i := range 100 {
			publish(t, b, "t", &bus.Message{Key: fmt.Sprint(i)})
		}
		if err := b.Publish(t.Context(), "t", "x", bus.WithKey("late"), bus.WithDelay(time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if late.Load() != 1 {
			t.Error("a delayed message did not come")
		}
	})
}

// TestKeyWaitsWithoutEntry: if the lane goes before the poison entry is written, its next owner writes it, and calls no handler.
func TestKeyWaitsWithoutEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wrapped{Driver: driver.Of(openBus(t))}
		w.poison = func(context.Context, driver.PoisonEntry) error { return errLater }
		first := router.New(bus.New(w), "g", router.Policy{KeyWaits: true, Retry: router.Never})
		var calls atomic.Int32
		handler := func(context.Context, *bus.Message) error { calls.Add(1); return errLater }
		first.HandleFunc("t", handler)
		stop := run(t, first, aPoisoning, "the poison queue cannot be written to")
		plain := bus.New(w.Driver)
		publish(t, plain, "t", &bus.Message{ID: "0", Key: "k"})
		time.Sleep(time.Minute)
		w.observer.Lost(w.lanes, errLater) // no clean stop, at which it would be given back
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		second := router.New(plain, "g", router.Policy{KeyWaits: true, Retry: router.Never})
		second.HandleFunc("t", handler)
		run(t, second, aPoisoning, "the poison queue cannot be written to")
		time.Sleep(time.Minute)
		synctest.Wait()
		if es := poisoned(t, plain, "g"); calls.Load() != 1 || len(es) != 1 || !es[0].Waits || es[0].Handler != "g/t" || es[0].Failure.Attempts != 1 {
			t.Errorf("%d calls, entries %+v", calls.Load(), es)
		}
	})
}

// TestRefusedForGoodKeepsItsPlace: a message that the broker never parks, and that waits for its next try when its member stops or hands its
// lane over, comes to the next member before the later ones of its key.
func TestRefusedForGoodKeepsItsPlace(t *testing.T) {
	for _, stops := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := &wrapped{Driver: driver.Of(openBus(t))}
			w.park = parksAllBut("k0", &bus.Error{Op: "park", Broker: "test", Err: bus.ErrTooLarge})
			b := bus.New(w)
			var j journal
			var tries atomic.Int32
			member := func() func() error {
				r := router.New(b, "g")
				r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
					if m.ID == "0" && tries.Add(1) == 1 {
						return bus.RetryAfter(errLater, time.Hour)
					}
					j.note(m)
					return nil
				})
				return run(t, r, aFailure, "the broker does not park a message")
			}
			for _, id := range numbers(5) {
				publish(t, b, "t", &bus.Message{ID: id, Key: "k"})
			}
			stop := member()
			time.Sleep(time.Second)
			synctest.Wait()
			if stops {
				begun := time.Now()
				if err := stop(); err != nil || time.Since(begun) > time.Second {
					t.Errorf("the stop took %v: %v", time.Since(begun), err)
				}
				member()
			} else {
				for range 4 { // one of them gets the lane
					member()
				}
			}
			time.Sleep(2 * time.Hour)
			synctest.Wait()
			if got := j.of("k"); !slices.Equal(got, numbers(5)) {
				t.Errorf("handled were %v", got)
			}
		})
	}
}

// TestHealthForgetsALaneThatWent: an entry that could not be put is no trouble any more when the lane's next owner has the message.
func TestHealthForgetsALaneThatWent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wrapped{Driver: driver.Of(openBus(t))}
		gate := make(chan struct{})
		w.poison = func(context.Context, driver.PoisonEntry) error { <-gate; return errLater }
		log := testlog.New(t, "the poison queue cannot be written to")
		r := router.New(bus.New(w), "g", router.Logger(log), router.Policy{KeyWaits: true, Retry: router.Never})
		r.HandleFunc("t", func(context.Context, *bus.Message) error { return errLater })
		run(t, r)
		publish(t, bus.New(w.Driver), "t", &bus.Message{ID: "0", Key: "k"})
		synctest.Wait()
		go w.observer.Revoking(t.Context(), w.lanes)
		synctest.Wait()
		close(gate)
		synctest.Wait()
		if h := r.Health(); h.Err() != nil || h.Routes[0].InFlight != 0 {
			t.Errorf("health is %+v", h)
		}
	})
}

// TestStopPolicyKeepsTheOrder: after a policy's Stop no later message of the key is handled.
func TestStopPolicyKeepsTheOrder(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			b := openBus(t)
			var j journal
			start := func(fails bool) func() error {
				r := router.New(b, "g", router.Policy{Retry: router.Never, Then: router.Stop})
				r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
					if fails && m.ID == "0" {
						return errLater
					}
					j.note(m)
					return nil
				})
				return run(t, r, "consuming stops")
			}
			for _, id := range numbers(5) {
				publish(t, b, "t", &bus.Message{ID: id, Key: "k"})
			}
			stop := start(true)
			synctest.Wait()
			_ = stop()
			start(false)
			synctest.Wait()
			if got := j.of("k"); !slices.Equal(got, numbers(5)) {
				t.Fatalf("came %v", got)
			}
		})
	}
}

// TestDueWhilePaused: what comes due in a pause comes after it.
func TestDueWhilePaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		r := router.New(b, "g")
		route := r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { j.note(m); return nil })
		run(t, r)
		delay(t, b, "a")
		synctest.Wait()
		route.Pause()
		time.Sleep(3 * time.Hour)
		route.Resume()
		synctest.Wait()
		if got := j.of("k"); !slices.Equal(got, []string{"a"}) {
			t.Errorf("came %v", got)
		}
	})
}

// TestStopIsBoundedByTheDrainTimeout: whoever begins a drain; and a later, shorter patience counts.
func TestStopIsBoundedByTheDrainTimeout(t *testing.T) {
	for _, shutdown := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := openBus(t)
			r := router.New(b, "g", router.DrainTimeout(time.Minute))
			route := r.HandleFunc("t", func(ctx context.Context, _ *bus.Message) error { <-ctx.Done(); return ctx.Err() })
			stop := run(t, r, "handlers still run")
			publish(t, b, "t", &bus.Message{ID: "0"})
			synctest.Wait()
			start := time.Now()
			go func() { _ = route.Stop(context.Background()) }()
			synctest.Wait()
			want := time.Minute
			if shutdown {
				want = time.Second
				ctx, cancel := context.WithTimeout(t.Context(), want)
				defer cancel()
				_ = r.Shutdown(ctx)
			}
			_ = stop()
			if took := time.Since(start); took > want+time.Second {
				t.Errorf("the stop took %v, want %v", took, want)
			}
		})
	}
}

// TestMoreThanMayBeParked: what is delayed beyond the bound comes, too, when there is room again.
func TestMoreThanMayBeParked(t *testing.T) {
	router.SetMaxParked(t, 1000)
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		const n = 3000
		var handled atomic.Int32
		log := testlog.New(t, "no further message can be parked")
		r := router.New(b, "g", router.Logger(log), router.InFlight(64, 1<<20))
		r.HandleFunc("t", func(context.Context, *bus.Message) error { handled.Add(1); return nil })
		run(t, r)
		publishing := make(chan error, 1)
		go func() {
			var ms []*bus.Message
			at := time.Now().Add(time.Hour).UTC().Format(time.RFC3339Nano)
			for range n {
				ms = append(ms, &bus.Message{Headers: bus.Headers{{Name: bus.HeaderDeliverAt, Value: at}}})
			}
			publishing <- b.PublishMessages(t.Context(), "t", ms...)
		}()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if err := <-publishing; err != nil || handled.Load() != n {
			t.Errorf("%d of %d were handled: %v", handled.Load(), n, err)
		}
	})
}

// TestCancelledAtTheBound: cancellations make room, so they do not wait for it.
func TestCancelledAtTheBound(t *testing.T) {
	router.SetMaxParked(t, 10)
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		r := router.New(b, "g", router.InFlight(64, 1<<20))
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { j.note(m); return nil })
		run(t, r, "no further message can be parked")
		ids := numbers(40)
		delay(t, b, ids...)
		synctest.Wait()
		for _, id := range ids[:35] {
			cancelDelayed(t, b, id)
		}
		synctest.Wait()
		if n := r.Health().Routes[0].InFlight; n != 0 {
			t.Errorf("%d are in flight", n)
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if got := j.of("k"); len(got) != 5 {
			t.Errorf("came %v", got)
		}
	})
}

// hiding is a driver around another whose sources hide their abilities.
type hiding struct{ driver.Driver }

func (h hiding) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	source, err := h.Driver.Subscribe(ctx, s, o)
	return struct{ bus.Source }{source}, err
}

// TestHiddenAbilities: a source that lacks an ability which its driver claims is an error at the start, and no panic later.
func TestHiddenAbilities(t *testing.T) {
	r := router.New(bus.New(hiding{driver.Of(openBus(t))}), "g")
	r.HandleFunc("t", func(context.Context, *bus.Message) error { return nil })
	if err := r.Run(t.Context()); !errors.Is(err, bus.ErrUnsupported) || !strings.Contains(err.Error(), "driver.ParkingSource") {
		t.Errorf("run: %v", err)
	}
}
