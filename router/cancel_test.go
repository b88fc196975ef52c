package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// delay publishes messages that are due in an hour, with these ids, and the key k.
func delay(t *testing.T, b *bus.Bus, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := b.Publish(t.Context(), "t", "x", bus.WithID(id), bus.WithKey("k"), bus.WithDelay(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
}

func cancelDelayed(t *testing.T, b *bus.Bus, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := b.Publish(t.Context(), "t", bus.Cancellation{Key: "k", ID: id}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCancelled: what is cancelled comes to no handler, whatever the handlers are like; the others of its key, and other keys with its
// id, are left alone.
func TestCancelled(t *testing.T) {
	for name, opts := range map[string][]router.Option{
		"plain":        {},
		"skipping":     {router.Skip("other"), router.SkipUnknown()},
		"unordered":    {router.Unordered()},
		"at most once": {router.Guarantee(router.AtMostOnce)}, // held in memory
	} {
		for _, batches := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", batches ", batches), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := openBus(t)
					var j journal
					r := router.New(b, "g")
					h := bus.Handler(bus.HandlerFunc(func(_ context.Context, m *bus.Message) error { j.note(m); return nil }))
					if batches {
						h = eachOf{h}
					}
					r.Handle("t", h, opts...)
					run(t, r, "a cancellation names no message")
					delay(t, b, "a", "b", "c")
					publish(t, b, "t", &bus.Message{ID: "now", Key: "k"})
					if err := b.Publish(t.Context(), "t", "x", bus.WithID("b"), bus.WithKey("other"), bus.WithDelay(time.Hour)); err != nil {
						t.Fatal(err)
					}
					cancelDelayed(t, b, "b", "b", "unknown")
					publish(t, b, "t", &bus.Message{Key: "k", Type: bus.TypeCancellation}, &bus.Message{Type: bus.TypeCancellation}) // name nothing
					synctest.Wait()
					time.Sleep(30 * time.Minute)
					cancelDelayed(t, b, "c", "unknown", "now")
					time.Sleep(31 * time.Minute)
					synctest.Wait()
					cancelDelayed(t, b, "a", "c") // too late
					time.Sleep(time.Hour)
					synctest.Wait()
					if got := j.of("k"); !slices.Equal(got, []string{"now", "a"}) {
						t.Errorf("of the key came %v", got)
					}
					if got := j.of("other"); !slices.Equal(got, []string{"b"}) {
						t.Errorf("of the other key came %v", got)
					}
					if n := len(j.of("")); n != 3 {
						t.Errorf("%d were handled: %v", n, j.of(""))
					}
					if es := poisoned(t, b, "g"); len(es) > 0 {
						t.Errorf("poisoned: %+v", es)
					}
					if h := r.Health().Routes[0]; h.InFlight != 0 {
						t.Errorf("%+v", h)
					}
				})
			})
		}
	}
}

// eachOf is a handler that takes batches.
type eachOf struct{ bus.Handler }

func (h eachOf) HandleBatch(ctx context.Context, ms []*bus.Message) error {
	for _, m := range ms {
		if err := h.Handle(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// TestCancelledLater: the cancellation meets what another member has parked, and what is still on its way to be parked.
func TestCancelledLater(t *testing.T) {
	for _, parkedBefore := range []bool{true, false} {
		t.Run(fmt.Sprint("parked before ", parkedBefore), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := openBus(t)
				var j journal
				start := func() (stop func() error) {
					r := router.New(b, "g")
					r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { j.note(m); return nil })
					return run(t, r)
				}
				if parkedBefore {
					stop := start()
					delay(t, b, "a", "b")
					synctest.Wait()
					if err := stop(); err != nil {
						t.Fatal(err)
					}
				} else {
					delay(t, b, "a", "b")
				}
				cancelDelayed(t, b, "b")
				start()
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if got := j.of("k"); !slices.Equal(got, []string{"a"}) {
					t.Errorf("came %v", got)
				}
			})
		})
	}
}

// TestCancelledAndPublishedAgain: a cancellation means what was published before it.
func TestCancelledAndPublishedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		delay(t, b, "a")
		cancelDelayed(t, b, "a")
		delay(t, b, "a") // all in one batch: it is not stored when the cancellation is seen to
		var j journal
		r := router.New(b, "g")
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { j.note(m); return nil })
		run(t, r)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := j.of("k"); !slices.Equal(got, []string{"a"}) {
			t.Errorf("came %v", got)
		}
	})
}

// faulty is a memory source that keeps a log of what is made durable, and has faults.
type faulty struct {
	driver.ParkingSource
	mu        sync.Mutex
	log       []string
	fetchErrs int
	stale     bool   // what is parked cannot be settled
	park      func() // called before messages are parked
	settle    func() // called before messages are settled
	commit    func() // called before they are durable
}

type faultyDriver struct {
	driver.Driver
	source *faulty
}

func (d faultyDriver) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	source, err := d.Driver.Subscribe(ctx, s, o)
	if err != nil {
		return nil, err
	}
	d.source.ParkingSource = source.(driver.ParkingSource)
	return d.source, nil
}

func (f *faulty) Park(ctx context.Context, ps []driver.Parking) error {
	if f.park != nil {
		f.park()
	}
	return f.ParkingSource.Park(ctx, ps)
}

func (f *faulty) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fetchErrs--; f.fetchErrs >= 0 {
		return 0, errLater
	}
	return f.ParkingSource.Fetch(ctx, tokens, dst)
}

func (f *faulty) Settle(ctx context.Context, tokens []bus.Token) error {
	if f.settle != nil {
		f.settle()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stale && tokens[0].Parked {
		return bus.ErrStale
	}
	for _, t := range tokens {
		f.log = append(f.log, map[bool]string{true: "parked", false: "origin"}[t.Parked])
	}
	return f.ParkingSource.Settle(ctx, tokens)
}

func (f *faulty) Commit(context.Context) error {
	if f.commit != nil {
		f.commit()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, "commit")
	return nil
}

// TestWithdrawnBeforeTheCancellationIsSettled: and for sure, so that no crash leaves a delayed message whose cancellation is gone.
func TestWithdrawnBeforeTheCancellationIsSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{fetchErrs: 2}
		memoryBus := openBus(t)
		b := bus.New(faultyDriver{driver.Of(memoryBus), f})
		var j journal
		r := router.New(b, "g")
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { j.note(m); return nil })
		run(t, r, "fetching cancelled messages")
		delay(t, b, "a", "b")
		synctest.Wait()
		cancelDelayed(t, b, "a")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := j.of("k"); !slices.Equal(got, []string{"b"}) {
			t.Errorf("came %v", got)
		}
		if want := []string{"parked", "commit", "parked", "origin", "parked"}; !slices.Equal(f.log, want) {
			t.Errorf("settled %v, want %v: what is cancelled, the cancellation, the other", f.log, want)
		}
	})
}

// TestNotWithdrawnNotSettled: if what is cancelled cannot be withdrawn, the cancellation is for the lane's next owner.
func TestNotWithdrawnNotSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{stale: true}
		memoryBus := openBus(t)
		r := router.New(bus.New(faultyDriver{driver.Of(memoryBus), f}), "g")
		r.HandleFunc("t", nop)
		run(t, r)
		delay(t, memoryBus, "a")
		synctest.Wait()
		cancelDelayed(t, memoryBus, "a")
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(f.log) > 0 {
			t.Errorf("settled %v", f.log)
		}
	})
}

// TestLaneGoesWhileItIsCancelled: the cancellation comes again to the lane's next owner.
func TestLaneGoesWhileItIsCancelled(t *testing.T) {
	for _, at := range []string{"park", "settle", "commit"} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprint(at, ", lost ", lost), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := &faulty{}
					memoryBus := openBus(t)
					var j journal
					start := func(b *bus.Bus) (stop func() error) {
						r := router.New(b, "g")
						r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { j.note(m); return nil })
						return run(t, r, "consuming stops", "could not be parked", "could not be settled")
					}
					var stop func() error
					stopped := make(chan struct{})
					goes := sync.OnceFunc(func() {
						if lost {
							_ = f.ParkingSource.Close(t.Context())
						}
						go func() {
							defer close(stopped)
							if err := stop(); err != nil && !errors.Is(err, bus.ErrClosed) {
								t.Error(err)
							}
						}()
						time.Sleep(time.Second) // the drain has begun
					})
					switch at {
					case "park":
						f.park = goes
					case "settle":
						f.settle = goes
					case "commit":
						f.commit = goes
					}
					stop = start(bus.New(faultyDriver{driver.Of(memoryBus), f}))
					delay(t, memoryBus, "a", "b")
					if at != "park" {
						synctest.Wait() // it is parked: else nothing needs to be committed
					}
					cancelDelayed(t, memoryBus, "a")
					<-stopped
					start(memoryBus)
					time.Sleep(2 * time.Hour)
					synctest.Wait()
					if got := j.of("k"); !slices.Equal(got, []string{"b"}) {
						t.Errorf("came %v", got)
					}
				})
			})
		}
	}
}

// TestReplayAtMostOnce: what others park for a group comes to its handlers, whatever guarantee they ask for.
func TestReplayAtMostOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var j journal
		r := router.New(b, "g", router.Guarantee(router.AtMostOnce))
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error { j.note(m); return nil })
		run(t, r)
		injector, _ := bus.As[driver.Injector](b)
		for i, id := range numbers(3) { // the second waits, and the third behind it
			p := driver.Parking{Delayed: i == 0, Delivery: bus.Delivery{Message: &bus.Message{ID: id, Key: "k"}}}
			if i == 1 {
				p.Due = time.Now().Add(time.Hour)
			}
			if err := injector.Inject(t.Context(), "t", "g", []driver.Parking{p}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		publish(t, b, "t", &bus.Message{ID: "3", Key: "k"})
		synctest.Wait()
		if got := j.of("k"); !slices.Equal(got, numbers(1)) {
			t.Errorf("came %v", got)
		}
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		if got := j.of("k"); !slices.Equal(got, numbers(4)) {
			t.Errorf("came %v", got)
		}
	})
}
