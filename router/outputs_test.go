package router_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// manyFunc is a batch handler.
type manyFunc func(ctx context.Context, ms []*bus.Message) error

func (f manyFunc) Handle(ctx context.Context, m *bus.Message) error {
	return f(ctx, []*bus.Message{m})
}
func (f manyFunc) HandleBatch(ctx context.Context, ms []*bus.Message) error { return f(ctx, ms) }

// refusing is a broker that fails to publish as a test wants.
type refusing struct {
	driver.Driver
	judge func(topic string, m *bus.Message) error

	mu    sync.Mutex
	taken map[string]int // by topic
}

func newRefusing(t *testing.T, judge func(topic string, m *bus.Message) error) (*refusing, *bus.Bus) {
	d := &refusing{Driver: driver.Of(openBus(t)), judge: judge, taken: map[string]int{}}
	return d, bus.New(d)
}

func (d *refusing) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	errs := make([]error, len(msgs))
	var good []*bus.Message
	for i, m := range msgs {
		if errs[i] = d.judge(topic, m); errs[i] == nil {
			d.taken[topic]++
			good = append(good, m)
		}
	}
	if len(good) > 0 {
		if err := d.Driver.Publish(ctx, topic, good); err != nil {
			return err
		}
	}
	if bus.PerMessage(errs) == nil {
		return nil
	}
	return &bus.PublishError{Errs: errs}
}

func entries(t *testing.T, b *bus.Bus, group string) (ids []string) {
	t.Helper()
	store, err := driver.Of(b).Poison(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range store.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.Message.ID)
	}
	return ids
}

func ten() (msgs []*bus.Message) {
	for i := range 10 {
		msgs = append(msgs, &bus.Message{ID: fmt.Sprint(i), Key: fmt.Sprint(i)})
	}
	return msgs
}

// TestOutputsOfABatchFailOneByOne: an output that the broker does not take is the trouble of the
// message that led to it, and of no other in its batch.
func TestOutputsOfABatchFailOneByOne(t *testing.T) {
	testlog.Expect(t, "handler failed", "message poisoned")
	synctest.Test(t, func(t *testing.T) {
		d, b := newRefusing(t, func(topic string, m *bus.Message) error {
			if topic == "out" && m.Subject == "bad" {
				return errLater
			}
			return nil
		})
		ended := map[string]int{}
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{10 * time.Millisecond, 10 * time.Millisecond}}, router.Workers(1))
		r.Use(bus.Around(func(ctx context.Context, c bus.Call) error {
			_ = bus.OnEnd(ctx, func(_ context.Context, succeeded func(*bus.Message) bool) error {
				for m := range c.Messages() {
					if succeeded(m) {
						ended[m.ID]++
					}
				}
				return nil
			})
			return c.Next(ctx)
		}))
		r.Handle("in", manyFunc(func(ctx context.Context, ms []*bus.Message) error {
			for _, m := range ms {
				out := &bus.Message{Subject: "good"}
				if m.ID == "7" {
					out.Subject = "bad"
				}
				for _, topic := range []string{"out", "other"} {
					if err := bus.Emit(ctx, topic, out, bus.WithCause(m)); err != nil {
						return err
					}
				}
			}
			return nil
		}), router.Fill(10, 100*time.Millisecond))
		bustest.Run(t, r)
		publish(t, b, "in", ten()...)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := entries(t, b, "g"); !slices.Equal(got, []string{"7"}) {
			t.Errorf("poisoned %q", got)
		}
		for _, topic := range []string{"out", "other"} {
			if n := d.taken[topic]; n != 9 {
				t.Errorf("%d outputs in topic %s, want 9", n, topic)
			}
		}
		if ended["7"] != 0 || len(ended) != 9 || ended["3"] != 1 {
			t.Errorf("succeeded %v", ended)
		}
	})
}

// TestWrongOutputIsToldWhenItIsEmitted: so the handler, and nobody else, has it.
func TestWrongOutputIsToldWhenItIsEmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		r := router.New(b, "g", router.Policy{Retry: router.Never}, router.Workers(1))
		r.Handle("in", manyFunc(func(ctx context.Context, ms []*bus.Message) error {
			errs := make([]error, len(ms))
			for i, m := range ms {
				out := &bus.Message{}
				if m.ID == "7" {
					out.Subject = "a\nb"
				}
				errs[i] = bus.Emit(ctx, "out", out, bus.WithCause(m))
			}
			return bus.PerMessage(errs)
		}), router.Fill(10, 100*time.Millisecond))
		run(t, r, aPoisoning)
		publish(t, b, "in", ten()...)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := entries(t, b, "g"); !slices.Equal(got, []string{"7"}) {
			t.Errorf("poisoned %q", got)
		}
	})
}

// TestIgnoredWithOutputsThatFail: a batch's message whose error was ignored is not settled before
// its outputs are published.
func TestIgnoredWithOutputsThatFail(t *testing.T) {
	testlog.Expect(t, "handler failed")
	synctest.Test(t, func(t *testing.T) {
		left := 1
		d, b := newRefusing(t, func(topic string, _ *bus.Message) error {
			if topic == "out" && left > 0 {
				left--
				return errLater
			}
			return nil
		})
		calls := 0
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{time.Second}})
		r.Handle("in", manyFunc(func(ctx context.Context, ms []*bus.Message) error {
			calls++
			return bus.Ignore(errors.Join(bus.Emit(ctx, "out", "x", bus.WithCause(ms[0])), errLater))
		}), router.Fill(1, time.Second))
		bustest.Run(t, r)
		publish(t, b, "in", &bus.Message{ID: "1"})
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := d.taken["out"]; n != 1 || calls != 2 {
			t.Errorf("%d outputs after %d calls", n, calls)
		}
	})
}

// TestEqualIDsAreInBatchesOfTheirOwn: outputs are known by the id of what led to them.
func TestEqualIDsAreInBatchesOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, b := newRefusing(t, func(string, *bus.Message) error { return nil })
		r := router.New(b, "g", router.Policy{Retry: router.Never}, router.Workers(1))
		r.Handle("in", manyFunc(func(ctx context.Context, ms []*bus.Message) error {
			errs := make([]error, len(ms))
			for i, m := range ms {
				if errs[i] = bus.Emit(ctx, "out-of-"+m.Key, "x", bus.WithCause(m)); m.Key == "bad" {
					errs[i] = errLater
				}
			}
			return bus.PerMessage(errs)
		}), router.Fill(2, time.Second))
		run(t, r, aPoisoning)
		publish(t, b, "in", &bus.Message{ID: "1", Key: "good"}, &bus.Message{ID: "1", Key: "bad"})
		time.Sleep(time.Minute)
		synctest.Wait()
		if d.taken["out-of-good"] != 1 || d.taken["out-of-bad"] != 0 {
			t.Errorf("outputs %v", d.taken)
		}
	})
}

// TestHistoryOfShortDelays: a handler is told of the failures before, also of tries that never left
// the process.
func TestHistoryOfShortDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		begun := time.Now()
		var told []bus.Failure
		r := router.New(b, "g", router.Policy{Retry: router.Schedule{100 * time.Millisecond, 100 * time.Millisecond, time.Minute}})
		r.HandleFunc("t", func(ctx context.Context, _ *bus.Message) error {
			if f := bus.DeliveryFrom(ctx).Failure; f != nil {
				told = append(told, *f)
			}
			return fmt.Errorf("failure %d", len(told)+1)
		})
		run(t, r, aFailure, aPoisoning)
		publish(t, b, "t", &bus.Message{ID: "0"})
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(told) != 3 {
			t.Fatalf("told %+v", told)
		}
		for i, f := range told {
			if f.Attempts != i+1 || f.Text != fmt.Sprint("failure ", i+1) || !f.First.Equal(begun) || f.Last.Before(begun.Add(time.Duration(i)*100*time.Millisecond)) {
				t.Errorf("at try %d: %+v", i+2, f)
			}
		}
	})
}

// TestGoexitEndsTheCall: whoever wants to know how a call ended is told, when the handler has ended
// its goroutine, too.
func TestGoexitEndsTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		var mu sync.Mutex
		ends := 0
		var contexts []context.Context
		quit := func(ctx context.Context) error {
			mu.Lock()
			contexts = append(contexts, ctx)
			mu.Unlock()
			err := bus.OnEnd(ctx, func(_ context.Context, succeeded func(*bus.Message) bool) error {
				mu.Lock()
				defer mu.Unlock()
				if ends++; succeeded(&bus.Message{ID: "0"}) {
					t.Error("succeeded")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			runtime.Goexit()
			return nil
		}
		r := router.New(b, "g", router.Policy{Retry: router.Never})
		r.HandleFunc("single", func(ctx context.Context, _ *bus.Message) error { return quit(ctx) })
		r.Handle("batch", manyFunc(func(ctx context.Context, _ []*bus.Message) error { return quit(ctx) }))
		run(t, r, aPoisoning)
		publish(t, b, "single", &bus.Message{ID: "0"})
		publish(t, b, "batch", &bus.Message{ID: "0"})
		synctest.Wait()
		if ends != 2 {
			t.Errorf("%d of 2 ends were told", ends)
		}
		for _, ctx := range contexts {
			if err := bus.Emit(ctx, "out", "late", bus.WithCause(&bus.Message{ID: "0"})); err == nil {
				t.Error("something was emitted after the end")
			}
		}
	})
}

// nilError is the mistake of returning a nil pointer as an error.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

// TestUsersMistakesDoNotEndTheProcess: an error without a text, and an ending that panics, are
// failures of their message.
func TestUsersMistakesDoNotEndTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBus(t)
		r := router.New(b, "g", router.Policy{Retry: router.Never})
		r.HandleFunc("error", func(context.Context, *bus.Message) error { return (*nilError)(nil) })
		r.HandleFunc("ending", func(ctx context.Context, _ *bus.Message) error {
			return bus.OnSuccess(ctx, func(context.Context) error { panic("oh") })
		})
		run(t, r, aPoisoning)
		publish(t, b, "error", &bus.Message{ID: "e"})
		publish(t, b, "ending", &bus.Message{ID: "p"})
		synctest.Wait()
		if got := entries(t, b, "g"); len(got) != 2 {
			t.Errorf("poisoned %q", got)
		}
	})
}

// TestKeyWaitsIsRefusedWhereItCannotBe: a key that does not wait although its policy says so is
// found out at the start.
func TestKeyWaitsIsRefusedWhereItCannotBe(t *testing.T) {
	for want, opts := range map[string][]router.Option{
		"Unordered":   {router.Policy{KeyWaits: true}, router.Unordered()},
		"AtMostOnce":  {router.Policy{KeyWaits: true}, router.Guarantee(router.AtMostOnce)},
		"Policy.Then": {router.Policy{KeyWaits: true, Then: router.Drop}},
		"":            {router.Policy{KeyWaits: true}},
	} {
		r := router.New(openBus(t), "g")
		r.HandleFunc("t", func(context.Context, *bus.Message) error { return nil }, opts...)
		switch err := r.Check(); {
		case want == "" && err != nil:
			t.Error(err)
		case want != "" && (!errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v", want, err)
		}
	}
}
