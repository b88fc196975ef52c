package router_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// fake is a driver and its only source, which a test steers.
type fake struct {
	observer bus.LaneObserver
	deliver  chan bus.Delivery
	broken   chan error // what Receive is to fail with

	mu           sync.Mutex
	subscribeErr []error
	settleErr    []error
	poisonErr    []error
	settled      []int64
	settleCalls  int
	puts         []time.Time
	closed       bool
	staleEpoch   uint64 // tokens of it are stale; the others are settled
}

func newFake() *fake { return &fake{deliver: make(chan bus.Delivery, 100), broken: make(chan error)} }

// next takes the first of the errors that are to come.
func (f *fake) next(errs *[]error) error {
	if len(*errs) == 0 {
		return nil
	}
	err := (*errs)[0]
	*errs = (*errs)[1:]
	return err
}

func (f *fake) Publish(context.Context, string, []*bus.Message) error { return nil }
func (f *fake) Capabilities() bus.Capabilities                        { return bus.Capabilities{Broker: "fake"} }

func (f *fake) Subscribe(_ context.Context, _ bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.next(&f.subscribeErr); err != nil {
		return nil, err
	}
	f.observer = o
	return f, nil
}

func (f *fake) Receive(ctx context.Context, dst []bus.Delivery, _ int) (int, error) {
	select {
	case dst[0] = <-f.deliver:
		return 1, nil
	case err := <-f.broken:
		return 0, err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (f *fake) Settle(_ context.Context, tokens []bus.Token) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settleCalls++
	if err := f.next(&f.settleErr); err != nil {
		return err
	}
	var err error
	for _, t := range tokens {
		if t.Epoch == f.staleEpoch {
			err = bus.ErrStale
		} else {
			f.settled = append(f.settled, t.Position)
		}
	}
	return err
}

func (f *fake) Close(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func (f *fake) Poison(context.Context, string) (driver.PoisonStore, error) { return f, nil }
func (f *fake) Put(context.Context, ...driver.PoisonEntry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts = append(f.puts, time.Now())
	return f.next(&f.poisonErr)
}
func (f *fake) List(context.Context) iter.Seq2[driver.PoisonEntry, error] { return nil }
func (f *fake) Remove(context.Context, ...string) error                   { return nil }

func (f *fake) send(lane int32, epoch uint64, pos int64, key string) {
	f.deliver <- bus.Delivery{Message: &bus.Message{ID: key, Key: key}, Token: bus.Token{Lane: lane, Epoch: epoch, Position: pos}, Topic: "t", Attempt: 1}
}

func (f *fake) settledNow() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.settled)
}

func TestRevokedLaneIsSettledBeforeItGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		gate := make(chan struct{})
		var handled []string
		var first context.Context
		r := router.New(bus.New(f), "g", router.Workers(1))
		r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
			if first == nil {
				first = ctx
			}
			<-gate
			handled = append(handled, m.Key)
			return nil
		})
		run(t, r)
		f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 7}, {ID: 2, Epoch: 8}})
		f.send(1, 7, 10, "running")
		f.send(1, 7, 11, "waiting")
		f.send(2, 8, 20, "other lane")
		f.send(2, 5, 19, "old epoch")
		synctest.Wait()
		var left []int64
		go func() {
			f.observer.Revoking(context.Background(), []bus.Lane{{ID: 1, Epoch: 7}})
			left = f.settledNow()
		}()
		synctest.Wait()
		if left != nil {
			t.Fatal("the lane was let go while a handler ran")
		}
		gate <- struct{}{}
		synctest.Wait()
		if !slices.Equal(left, []int64{10}) {
			t.Fatalf("settled when the lane went: %v", left)
		}
		if cause := context.Cause(first); !errors.Is(cause, bus.ErrLaneLost) || cause.Error() != bus.ErrLaneLost.Error() {
			t.Errorf("after a hand-over the context has ended because of %v", cause) // a loss has the driver's reason
		}
		close(gate)
		synctest.Wait()
		if !slices.Equal(handled, []string{"running", "other lane"}) {
			t.Errorf("handled %q", handled)
		}
		if h := r.Health().Routes[0]; h.InFlight != 0 || h.Lanes != 1 {
			t.Errorf("%+v", h)
		}
	})
}

func TestRevocationThatTakesTooLongIsALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var cause error
		r := router.New(bus.New(f), "g")
		r.HandleFunc("t", func(ctx context.Context, _ *bus.Message) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return nil
		})
		run(t, r)
		f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 7}})
		f.send(1, 7, 10, "k")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		f.observer.Revoking(ctx, []bus.Lane{{ID: 1, Epoch: 7}})
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v", took)
		}
		synctest.Wait()
		if !errors.Is(cause, bus.ErrLaneLost) || len(f.settledNow()) != 0 {
			t.Errorf("cause %v, settled %v", cause, f.settledNow())
		}
	})
}

func TestLostLaneCancelsHandlersAndSettlesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var cause error
		expired := errors.New("session expired")
		r := router.New(bus.New(f), "g", router.Policy{Retry: router.Schedule{time.Hour}})
		r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
			if m.Key == "held" {
				return errors.New("later")
			}
			<-ctx.Done()
			cause = context.Cause(ctx)
			return errors.New("interrupted")
		})
		run(t, r, aFailure)
		f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 7}})
		f.send(1, 7, 10, "held")
		f.send(1, 7, 11, "held") // behind it
		f.send(1, 7, 12, "running")
		synctest.Wait()
		f.observer.Lost([]bus.Lane{{ID: 1, Epoch: 7}}, expired)
		synctest.Wait()
		if !errors.Is(cause, bus.ErrLaneLost) || !errors.Is(cause, expired) {
			t.Errorf("cause %v", cause)
		}
		if h := r.Health().Routes[0]; h.InFlight != 0 || h.Lanes != 0 || len(f.settledNow()) != 0 || len(f.puts) != 0 {
			t.Errorf("%+v, settled %v, poisoned %d", h, f.settledNow(), len(f.puts))
		}
	})
}

func TestSettlingIsRepeatedUntilItWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.settleErr = []error{errors.New("away"), errors.New("away"), nil, bus.ErrStale}
		r := router.New(bus.New(f), "g")
		r.HandleFunc("t", nop)
		run(t, r, "settling failed")
		f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 7}})
		f.send(1, 7, 10, "a")
		time.Sleep(time.Minute)
		synctest.Wait()
		f.send(1, 7, 11, "stale")
		time.Sleep(time.Minute)
		synctest.Wait()
		f.send(1, 7, 12, "c")
		synctest.Wait()
		if got := f.settledNow(); !slices.Equal(got, []int64{10, 12}) || f.settleCalls != 5 {
			t.Errorf("settled %v in %d calls", got, f.settleCalls)
		}
		if n := r.Health().Routes[0].InFlight; n != 0 {
			t.Errorf("%d in flight", n)
		}
	})
}

func TestMessageStaysWhileThePoisonQueueIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		for range 5 {
			f.poisonErr = append(f.poisonErr, errors.New("away"))
		}
		calls := 0
		r := router.New(bus.New(f), "g")
		r.HandleFunc("t", func(_ context.Context, m *bus.Message) error {
			calls++
			return bus.Permanent(errors.New("no"))
		})
		run(t, r, aPoisoning, "the poison queue cannot be written to")
		f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 7}})
		f.send(1, 7, 10, "a")
		synctest.Wait()
		if len(f.settledNow()) != 0 {
			t.Fatal("settled although it is nowhere")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := f.settledNow(); !slices.Equal(got, []int64{10}) || calls != 1 || len(f.puts) != 6 {
			t.Fatalf("settled %v, %d calls, %d puts", got, calls, len(f.puts))
		}
		for i := 1; i < len(f.puts); i++ {
			if wait := f.puts[i].Sub(f.puts[i-1]); wait < 50*time.Millisecond {
				t.Errorf("put again after %v: a hot loop", wait)
			}
		}
	})
}

func TestBrokerAwayAtTheStartAndLater(t *testing.T) {
	testlog.Expect(t, "cannot subscribe yet", "receiving failed")
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.subscribeErr = []error{errors.New("connection refused"), errors.New("connection refused")}
		r := router.New(bus.New(f), "g")
		r.HandleFunc("t", nop)
		go func() { _ = r.Run(t.Context()) }()
		synctest.Wait()
		if err := r.Health().Err(); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("health at the start: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := r.Ready(ctx); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("ready: %v", err)
		}
		if err := r.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.broken <- errors.New("broken pipe")
		synctest.Wait()
		if err := r.Health().Err(); err == nil || !strings.Contains(err.Error(), "broken pipe") {
			t.Errorf("health while receiving fails: %v", err)
		}
		f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 7}})
		f.send(1, 7, 10, "a")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := f.settledNow(); !slices.Equal(got, []int64{10}) || r.Health().Err() != nil {
			t.Errorf("afterwards: settled %v, health %v", got, r.Health().Err())
		}
		if err := r.Shutdown(t.Context()); err != nil || !f.closed {
			t.Errorf("shutdown: %v, source closed: %v", err, f.closed)
		}
	})
}

func TestFinalSubscribeErrorEndsRun(t *testing.T) {
	f := newFake()
	f.subscribeErr = []error{bus.ErrUnsupported}
	r := router.New(bus.New(f), "g")
	r.HandleFunc("t", nop)
	if err := r.Run(t.Context()); !errors.Is(err, bus.ErrUnsupported) || !strings.Contains(err.Error(), `group "g" to topic "t"`) {
		t.Errorf("run: %v", err)
	}
}

// committing is a fake whose settlements become durable by Commit.
type committing struct {
	*fake
	commit func(n int) error // n is how often it was called before
	n      int
}

func (c *committing) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	if _, err := c.fake.Subscribe(ctx, s, o); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *committing) Commit(context.Context) error {
	c.n++
	return c.commit(c.n - 1)
}

// TestAtMostOnceOfABatchWhoseLaneGoes: what is of other lanes is settled, and so it must be
// handled.
func TestAtMostOnceOfABatchWhoseLaneGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var handled []string
		r := router.New(bus.New(&committing{fake: f, commit: func(int) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.staleEpoch = 8
			return nil
		}}), "g", router.Guarantee(router.AtMostOnce))
		r.Handle("t", eachOf{bus.HandlerFunc(func(_ context.Context, m *bus.Message) error {
			handled = append(handled, m.Key)
			return nil
		})}, router.Fill(3, time.Minute))
		run(t, r)
		f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 7}, {ID: 2, Epoch: 8}})
		f.send(1, 7, 10, "a")
		f.send(2, 8, 20, "gone")
		f.send(1, 7, 11, "b")
		synctest.Wait()
		if slices.Sort(handled); !slices.Equal(handled, []string{"a", "b"}) {
			t.Errorf("handled were %v", handled)
		}
	})
}

// At most once: a handler is called when its message's settlement is durable for sure, and its lane
// was ours all the time.
func TestAtMostOnceKnowsThatItIsSettled(t *testing.T) {
	goes := func(f *fake) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.settleErr = append(f.settleErr, bus.ErrStale)
	}
	for _, tc := range []struct {
		name   string
		commit func(f *fake, n int) error
		calls  int
	}{
		{"committed", func(*fake, int) error { return nil }, 1},
		{"committed at the second try", func(_ *fake, n int) error {
			if n == 0 {
				return errLater
			}
			return nil
		}, 1},
		{"the lane goes before the commit, which has nothing to do then", func(f *fake, _ int) error { goes(f); return nil }, 0},
		{"the lane goes while the commit fails", func(f *fake, n int) error {
			if n == 0 {
				goes(f)
				return errLater
			}
			return nil
		}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				calls := 0
				r := router.New(bus.New(&committing{fake: f, commit: func(n int) error { return tc.commit(f, n) }}), "g", router.Guarantee(router.AtMostOnce))
				r.HandleFunc("t", func(context.Context, *bus.Message) error { calls++; return nil })
				run(t, r, "committing failed")
				f.observer.Assigned([]bus.Lane{{ID: 1, Epoch: 7}})
				f.send(1, 7, 10, "a")
				time.Sleep(time.Hour)
				synctest.Wait()
				if calls != tc.calls {
					t.Errorf("%d calls, want %d", calls, tc.calls)
				}
			})
		})
	}
}

// TestLostLaneCancelsBatchAtOnce: when a driver has told that lanes are lost, no handler works on
// their messages unknowing, also not on a batch of several lanes: the next owner may begin with
// them.
func TestLostLaneCancelsBatchAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		calls := make(chan context.Context, 1)
		r := router.New(bus.New(f), "g")
		r.Handle("t", batchFunc(func(ctx context.Context, ms []*bus.Message) error {
			calls <- ctx
			<-ctx.Done()
			return ctx.Err()
		}), router.Fill(2, time.Minute))
		run(t, r)
		f.observer.Assigned([]bus.Lane{{ID: 0, Epoch: 1}, {ID: 1, Epoch: 2}})
		f.send(0, 1, 0, "a")
		f.send(1, 2, 0, "b")
		ctx := <-calls
		f.observer.Lost([]bus.Lane{{ID: 1, Epoch: 2}}, nil)
		if err := ctx.Err(); err == nil || !errors.Is(context.Cause(ctx), bus.ErrLaneLost) {
			t.Errorf("the batch's context has ended with %v, because of %v", err, context.Cause(ctx))
		}
	})
}
